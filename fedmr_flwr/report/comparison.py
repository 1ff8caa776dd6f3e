"""The comparison of several strategies: the runs that it needs, and their results as tables."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedmr_flwr.config.loading import load
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import ConfigError, RunFolderError
from fedmr_flwr.files import write_aside
from fedmr_flwr.runs import folder
from fedmr_flwr.runs.folder import RunFolder

# Settings of where and how a run is computed, which do not change its result. All others must be equal for an earlier
# run to be used: a new setting counts as one that changes the result.
_NOT_THE_RESULT = {
    "engine", "device", "client_cpus", "ray", "deployment", "data_dir", "run_dir", "checkpoint_every",
    "round_timeout", "evaluate_clients",
}  # fmt: skip
# The mean of the last evaluations varies less than the last one alone.
_LAST = 5
_NO_NUMBER = "–"

Metrics = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Variant:
    """A strategy with options, as written on the command line: "fedprox", "fedmut/radius=1", "flwr:FedAdam".

    Attributes:
        label: the strategy as written.
    """

    label: str

    def overrides(self) -> list[str]:
        """Return its overrides of a configuration.

        Raises:
            ConfigError: an option is not written as key=value.
        """
        name, *options = self.label.split("/")
        if wrong := [option for option in options if "=" not in option]:
            raise ConfigError(f"--strategies {self.label}: '{wrong[0]}' is not an option; write NAME/key=value")
        return [f"strategy.name={name}", *(f"strategy.{option}" for option in options)]

    def folder(self, seed: int) -> str:
        """Return the name of the folder of its run."""
        # Options may contain slashes, brackets and quotes, which do not belong into the name of a folder.
        return f"{re.sub(r'[^A-Za-z0-9.=+-]+', '_', self.label)}-seed{seed}"


def parse_strategies(text: str) -> list[Variant]:
    """Parse a list of strategies, separated by commas; a comma in brackets belongs to an option.

    Raises:
        ConfigError: the list is empty or has duplicates.
    """
    labels = [label.strip() for label in re.split(r",(?![^\[]*\])", text) if label.strip()]
    if not labels or len(set(labels)) < len(labels):
        raise ConfigError(f"--strategies {text}: list each strategy once, separated by commas")
    return [Variant(label) for label in labels]


def check_target(number: float) -> float:
    """Check that an accuracy is from 0 to 1, and return it.

    Raises:
        ConfigError: it is not, perhaps because it is a percentage.
    """
    if not 0 <= number <= 1:
        raise ConfigError(f"--target {number:g}: the accuracy must be from 0 to 1, such as 0.8")
    return number


def parse_seeds(text: str) -> list[int]:
    """Parse a list of seeds, separated by commas.

    Raises:
        ConfigError: one is not a non-negative integer, or there are duplicates.
    """
    words = [word.strip() for word in text.split(",")]
    # Compared as numbers, because 1 and 01 are the same seed.
    if not all(word.isdecimal() for word in words) or len({int(word) for word in words}) < len(words):
        raise ConfigError(f"--seeds {text}: list each seed once, non-negative integers separated by commas")
    return [int(word) for word in words]


def plan(
    conf: str | Path, overrides: Iterable[str], compared: Iterable[Variant], of_seeds: Iterable[int] | None, out: Path
) -> list[tuple[Variant, Settings]]:
    """Return the runs of a comparison, strategy by strategy.

    Args:
        conf: a configuration file.
        overrides: for all runs.
        compared: the strategies.
        of_seeds: the seeds; None: the configuration's own.
        out: the parent folder of all runs.

    Raises:
        ConfigError: a configuration is wrong.
        RunFolderError: a run's folder contains another run.
    """
    # It is used once for each run, and an iterator would be empty after the first.
    overrides = list(overrides)
    if taken := [text for text in overrides if text.startswith(("run-dir=", "strategy.name=", "seed="))]:
        raise ConfigError(f"'{taken[0]}': use --strategies, --seeds and, for all runs, --out FOLDER")
    runs = []
    for variant in compared:
        for seed in of_seeds or [load(conf, overrides).seed]:
            own = [f"seed={seed}", f"run-dir={out / variant.folder(seed)}"]
            settings = load(conf, [*overrides, *variant.overrides(), *own])
            runs.append((variant, settings))
    folders = [str(settings.run_dir) for _, settings in runs]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise ConfigError(f"--strategies: two of them have the same folder {twice[0]}; write one of them differently")
    # All of them before the first run starts, because an error after hours would be worse.
    for _, settings in runs:
        _check_same(settings)
    return runs


def find_earlier_run(settings: Settings) -> RunFolder | None:
    """Return the folder of a run that was started earlier, None if it was not.

    Raises:
        RunFolderError: the folder contains something else, or a damaged run.
    """
    assert settings.run_dir is not None
    if (settings.run_dir / "config.yaml").exists():
        return RunFolder.open(settings.run_dir)
    folder.check_free(settings.run_dir, "--out FOLDER")
    return None


def rows_of(run: RunFolder) -> Metrics:
    """Return the metrics of a complete run.

    Raises:
        RunFolderError: they are damaged.
    """
    rows, rounds = run.read_rows(), run.read_manifest().get("rounds")
    # A complete run has all rows; with fewer, the mean over rounds would be wrong without an error.
    if len(rows) != rounds:
        raise RunFolderError(
            f"{run.metrics} is damaged: it has {len(rows)} of {rounds} rounds; delete {run.path} to train again"
        )
    return rows


def _check_same(settings: Settings) -> None:
    """Check that an earlier run in the folder has the same settings and the same data."""
    if (out := find_earlier_run(settings)) is None:
        return
    before, now = (
        known.model_dump(mode="json", by_alias=True, exclude=_NOT_THE_RESULT)
        for known in (load(out.config), settings)
    )
    # The files may have changed under the same name.
    if known := out.read_manifest().get("data-sha256"):
        # Imported here, because it loads PyTorch, which the help of the command line need not wait for.
        from fedmr_flwr.data import datasets

        dataset = datasets.load(settings.data, settings.data_dir, settings.seed)
        before["data-sha256"], now["data-sha256"] = known, dataset.digest()
    for name, value in now.items():
        if before[name] != value:
            raise RunFolderError(
                f"{out.path} was started with {name} = {before[name]}, but now it is {value}; choose another folder "
                "with --out"
            )


@dataclass(frozen=True)
class Summary:
    """The results of one strategy over its complete runs.

    Attributes:
        label: of the strategy.
        runs: the number of complete runs.
        wanted: the number of planned runs.
        last: test accuracy after the last round, one for each run; 0 to 1.
        best: of all evaluated rounds.
        late: mean of the last five evaluated rounds.
        reached: the first evaluated round with the target accuracy; infinite if there was none.
        bytes_down: bytes sent to a client in a round, mean over rounds.
        bytes_up: bytes received from a client in a round, mean over rounds.
        seconds: of a round, mean over rounds.
    """

    label: str
    runs: int
    wanted: int
    last: tuple[float, ...]
    best: tuple[float, ...]
    late: tuple[float, ...]
    reached: tuple[float, ...]
    bytes_down: tuple[float, ...]
    bytes_up: tuple[float, ...]
    seconds: tuple[float, ...]


def summarise(
    found: Mapping[str, Sequence[Metrics]], wanted: int, target: float | None = None
) -> tuple[list[Summary], float]:
    """Summarise the results of every strategy.

    Args:
        found: the metrics of the complete runs by strategy.
        wanted: the number of planned runs of each strategy.
        target: the accuracy to reach; None: the highest whole percentage that all runs have reached.

    Returns:
        A summary for each strategy, and the target.
    """
    scored = {label: [_scored(rows) for rows in runs] for label, runs in found.items()}
    if target is None:
        bests = [accuracies.max() for runs in scored.values() for _, accuracies in runs]
        # Rounded down, so that every run has reached it.
        target = float(np.floor(100 * min(bests)) / 100) if bests else 0.0

    def line(label: str, runs: Sequence[Metrics]) -> Summary:
        def each(number: Callable[[Any], Any], of: Iterable[Any]) -> tuple[float, ...]:
            return tuple(float(number(one)) for one in of)

        accuracies = [by_round for _, by_round in scored[label]]
        return Summary(
            label,
            len(runs),
            wanted,
            last=each(lambda by_round: by_round[-1], accuracies),
            best=each(np.max, accuracies),
            late=each(lambda by_round: by_round[-_LAST:].mean(), accuracies),
            # Infinite if no round has reached the target.
            reached=each(lambda run: np.append(run[0][run[1] >= target], np.inf)[0], scored[label]),
            bytes_down=each(lambda rows: np.mean([_per_client(row, "bytes-down") for row in rows]), runs),
            bytes_up=each(lambda rows: np.mean([_per_client(row, "bytes-up") for row in rows]), runs),
            seconds=each(lambda rows: np.mean([row["seconds"] for row in rows]), runs),
        )

    return [line(label, runs) for label, runs in found.items()], target


def _scored(rows: Metrics) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the evaluated rounds and their accuracies."""
    scored = [row for row in rows if "test-accuracy" in row]
    return np.array([row["round"] for row in scored]), np.array([row["test-accuracy"] for row in scored])


def _per_client(row: Mapping[str, Any], direction: str) -> float:
    return float(sum(row[direction].values()) / len(row["clients"]))


def cells(line: Summary, plus_minus: str = "±") -> list[str]:
    """Return a line of the table as text, in the order of `column_names`."""

    def number(values: Sequence[float], scale: float, digits: int) -> str:
        if not values:
            return _NO_NUMBER
        # The sample's deviation (ddof=1), because the seeds are a sample of all possible ones.
        mean = f"{scale * np.mean(values):.{digits}f}"
        return mean if len(values) == 1 else f"{mean} {plus_minus} {scale * np.std(values, ddof=1):.{digits}f}"

    # No mean if a run did not reach the target: one over the others would look better than it is.
    reached = _NO_NUMBER if np.isinf(line.reached).any() else number(line.reached, 1, int(len(line.reached) > 1))
    costs = (line.bytes_down, 1e-6), (line.bytes_up, 1e-6), (line.seconds, 1)
    return [
        line.label,
        f"{line.runs}" if line.runs == line.wanted else f"{line.runs} of {line.wanted}",
        *(number(values, 100, 1) for values in (line.last, line.best, line.late)),
        reached,
        *(number(values and (float(np.mean(values)),), scale, 2) for values, scale in costs),
    ]


def column_names(target: float) -> list[str]:
    """Return the column names of the table."""
    return [
        "strategy",
        "runs",
        "last",
        "best",
        f"last {_LAST}",
        f"rounds to {100 * target:g} %",
        "MB down",
        "MB up",
        "s/round",
    ]


def to_markdown(table: Sequence[Summary], target: float) -> str:
    """Return the table in Markdown, with aligned columns."""
    head, *body = column_names(target), *(cells(line) for line in table)
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]

    def aligned(row: Sequence[str]) -> list[str]:
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        return [first.strip().ljust(widths[0]), *rest]

    rule = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    return "".join(f"| {' | '.join(row)} |\n" for row in (aligned(head), rule, *map(aligned, body)))


def to_latex(table: Sequence[Summary], target: float) -> str:
    """Return the table in LaTeX, for the package booktabs."""
    text = [column_names(target), *(cells(line, r"$\pm$") for line in table)]
    # LaTeX would read a percent sign in a column's name as the start of a comment.
    safe = [[re.sub(r"([%_#&])", r"\\\1", cell).replace("–", "--") for cell in row] for row in text]
    head, *body = (rf"{' & '.join(row)} \\" for row in safe)
    begin = rf"\begin{{tabular}}{{l{'r' * (len(safe[0]) - 1)}}}"
    rows = [begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "".join(f"{row}\n" for row in rows)


def to_csv(table: Sequence[Summary], target: float) -> str:
    """Return the table as CSV: mean and standard deviation of every number, in full precision."""
    out = io.StringIO()
    names = ("last", "best", "late", "reached", "bytes_down", "bytes_up", "seconds")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["strategy", "runs", "target", *(f"{name}_{what}" for name in names for what in ("mean", "std"))])
    for line in table:
        numbers: list[float | str] = []
        for name in names:
            values = getattr(line, name)
            # An empty cell instead of "inf" or "nan", which other programs read as text.
            known = len(values) > 0 and np.isfinite(values).all()
            numbers.append(float(np.mean(values)) if known else "")
            numbers.append(float(np.std(values, ddof=1)) if known and len(values) > 1 else "")
        writer.writerow([line.label, line.runs, target, *numbers])
    return out.getvalue()


def write(table: Sequence[Summary], target: float, out: Path) -> None:
    """Write the table to a folder, as comparison.md, .tex and .csv.

    Raises:
        RunFolderError: a file cannot be written.
    """
    for kind, text in {"md": to_markdown, "tex": to_latex, "csv": to_csv}.items():
        write_aside(out / f"comparison.{kind}", text(table, target).encode())
