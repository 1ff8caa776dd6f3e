"""The results of a study as tables: a line for each cell and strategy, and a row for each cell."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fedmr_flwr.analysis.studies.results import NUMBERS, best_of, difference
from fedmr_flwr.files import write_aside
from fedmr_flwr.report.summary import LAST, STEADY

# What stands below a table; with the set on which models were scored.
CAPTION = (
    "{} accuracy in %, mean ± standard deviation over runs; MB down and up per client and round, MB to of all "
    "clients; s/round is the median"
)
CELLS_CAPTION = (
    "{} accuracy in %, mean of the last five evaluations; bold where it is higher than each other one at 95 %"
)
_NO_NUMBER = "–"
# The columns of evaluations that are made only if they are configured.
_EVALUATED = {
    "clients": "client_mean", "worst tenth": "client_worst", "fine-tuned": "tuned_mean", "macro-F1": "macro_f1",
}  # fmt: skip
# The columns of `fedmr flatness`, with their decimals; before them the round.
_MEASURED = "at round"
_FLATNESS = {"λ1": ("lambda1", 1), "trace": ("trace", 0), "sharpness": ("sharpness", 3)}
# What LaTeX writes otherwise.
_LATEX = {"±": r"$\pm$", "λ1": r"$\lambda_1$", "–": "--", "−": "$-$"}


def statistics(runs: pd.DataFrame, cells: Sequence[str], strategies: Sequence[str], wanted: int) -> pd.DataFrame:
    """Return the statistics over seeds, in full precision.

    Args:
        runs: from `results.collect`.
        cells: the rows of the study, in their order.
        strategies: its columns.
        wanted: the number of planned runs of each cell and strategy.

    Returns:
        A line for each cell and strategy: "cell", "strategy", "runs", "wanted", "target", mean and standard deviation
        of each number, "difference", "difference_low" and "difference_high": of the mean of the last five
        evaluations to the first strategy's, with its confidence interval. A mean is missing if a run has no such
        number: over the others it would look better than it is.
    """
    lines = []
    for cell in cells:
        for strategy in strategies:
            own = runs[(runs["cell"] == cell) & (runs["strategy"] == strategy)]
            known = own[NUMBERS].replace(math.inf, math.nan)
            line: dict[str, object] = {"cell": cell, "strategy": strategy, "runs": len(own), "wanted": wanted}
            targets = runs.loc[runs["cell"] == cell, "target"]
            line["target"] = targets.iloc[0] if len(targets) else math.nan
            for name in NUMBERS:
                line[f"{name}_mean"] = known[name].mean(skipna=False) if len(own) else math.nan
                line[f"{name}_std"] = known[name].std(skipna=False) if len(own) > 1 else math.nan
            gap = difference(runs, cell, strategy, strategies[0]) if strategy != strategies[0] else None
            ends = zip(("", "_low", "_high"), gap or [math.nan] * 3, strict=True)
            line |= {f"difference{end}": value if np.isfinite(value) else math.nan for end, value in ends}
            lines.append(line)
    return pd.DataFrame(lines)


def details(table: pd.DataFrame) -> pd.DataFrame:
    """Return the statistics as text for people.

    Args:
        table: from `statistics`.
    """
    lines = []
    for line in table.to_dict("records"):
        runs, wanted = line["runs"], line["wanted"]
        lines.append(
            {
                "cell": line["cell"],
                "strategy": line["strategy"],
                "runs": f"{runs}" if runs == wanted else f"{runs} of {wanted}",
                "last": _number(line, "last", 100, 1),
                "best": _number(line, "best", 100, 1),
                f"last {LAST}": _number(line, "late", 100, 1),
                f"sd last {STEADY}": _mean(line, "steadiness", 100, 1),
                f"against {table['strategy'].iloc[0]}": _gap(line),
                "target": _NO_NUMBER if math.isnan(line["target"]) else f"{100 * line['target']:g} %",
                "rounds to": _number(line, "rounds_to", 1, 1 if runs > 1 else 0),
                "MB to": _mean(line, "bytes_to", 1e-6, 2),
                "s to": _mean(line, "seconds_to", 1, 1),
                "MB down": _mean(line, "bytes_down", 1e-6, 2),
                "MB up": _mean(line, "bytes_up", 1e-6, 2),
                "s/round": _mean(line, "seconds", 1, 2),
                **{title: _number(line, name, 100, 1) for title, name in _EVALUATED.items()},
                _MEASURED: _mean(line, "flatness_round", 1, 0),
                **{title: _number(line, name, 1, digits) for title, (name, digits) in _FLATNESS.items()},
            }
        )
    found = pd.DataFrame(lines)
    # What no run has measured is no column.
    optional = [*_EVALUATED, _MEASURED, *_FLATNESS]
    found = found.drop(columns=[title for title in optional if (found[title] == _NO_NUMBER).all()])
    return found if (found["cell"] != "").any() else found.drop(columns="cell")


def by_cell(table: pd.DataFrame, runs: pd.DataFrame, mark: str = "**{}**") -> pd.DataFrame:
    """Return the mean of the last five evaluations as text: a row for each cell, a column for each strategy.

    Args:
        table: from `statistics`.
        runs: from `results.collect`.
        mark: around the best of a row, if its interval against each of the others is above zero.
    """
    rows = []
    for cell in table["cell"].unique():
        best = best_of(runs, cell)
        row = {"cell": cell}
        for line in table[table["cell"] == cell].to_dict("records"):
            text = _number(line, "late", 100, 1)
            row[line["strategy"]] = mark.format(text) if line["strategy"] == best else text
        rows.append(row)
    return pd.DataFrame(rows)


def to_markdown(text: pd.DataFrame) -> str:
    """Return a table in Markdown, with aligned columns."""
    names = [column in ("cell", "strategy") for column in text.columns]
    align = ["left" if name else "right" for name in names]
    # A line in a name, as in a path, would begin another column.
    text = text.rename(columns=_escape).map(_escape)
    return str(text.to_markdown(index=False, disable_numparse=True, colalign=align)) + "\n"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def to_latex(text: pd.DataFrame) -> str:
    """Return a table in LaTeX, for the package booktabs."""
    left = sum(column in ("cell", "strategy") for column in text.columns)
    layout = "l" * left + "r" * (len(text.columns) - left)
    # Signs of LaTeX in the names are escaped; the mark of the best is LaTeX already.
    style = text.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    found = str(style.to_latex(column_format=layout, hrules=True))
    for sign, command in {**_LATEX, "<b>": r"\textbf{", "</b>": "}"}.items():
        found = found.replace(sign, command)
    return found


def write(table: pd.DataFrame, runs: pd.DataFrame, out: Path) -> list[Path]:
    """Write the tables to a folder.

    Args:
        table: from `statistics`.
        runs: from `results.collect`.
        out: the folder.

    Returns:
        The files: comparison.md, .csv and .tex with a line for each cell and strategy; runs.csv with a line for each
        run; if there are several cells, cells.md, .csv and .tex with a row for each.

    Raises:
        RunFolderError: a file cannot be written.
    """
    files = {
        "comparison.md": to_markdown(details(table)),
        "comparison.csv": table.to_csv(index=False, lineterminator="\n"),
        "comparison.tex": to_latex(details(table)),
        "runs.csv": runs.replace(math.inf, math.nan).to_csv(index=False, lineterminator="\n"),
    }
    if table["cell"].nunique() > 1:
        wide = table.pivot(index="cell", columns="strategy", values=["late_mean", "late_std"])
        wide = wide.reindex(index=table["cell"].unique())
        # "fedmr_mean", "fedmr_std", "fedavg_mean" …, strategies in their order.
        order = [(f"late_{what}", name) for name in table["strategy"].unique() for what in ("mean", "std")]
        wide = wide[order].set_axis([f"{name}_{what.removeprefix('late_')}" for what, name in order], axis=1)
        files |= {
            "cells.md": to_markdown(by_cell(table, runs)),
            "cells.csv": wide.to_csv(lineterminator="\n"),
            "cells.tex": to_latex(by_cell(table, runs, mark="<b>{}</b>")),
        }
    for name, content in files.items():
        write_aside(out / name, content.encode())
    return [out / name for name in files]


def _number(line: dict[str, float], name: str, scale: float, digits: int) -> str:
    """Return the mean and, over several runs, the standard deviation."""
    mean, std = _mean(line, name, scale, digits), scale * line[f"{name}_std"]
    return mean if mean == _NO_NUMBER or math.isnan(std) else f"{mean} ± {std:.{digits}f}"


def _mean(line: dict[str, float], name: str, scale: float, digits: int) -> str:
    mean = scale * line[f"{name}_mean"]
    return _NO_NUMBER if math.isnan(mean) else f"{mean:.{digits}f}"


def _gap(line: dict[str, float]) -> str:
    if math.isnan(line["difference"]):
        return _NO_NUMBER
    numbers = [f"{100 * line[f'difference{end}']:+.1f}".replace("-", "−") for end in ("", "_low", "_high")]
    return numbers[0] if math.isnan(line["difference_low"]) else f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"
