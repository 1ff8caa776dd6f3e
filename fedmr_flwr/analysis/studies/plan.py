"""The runs of a study, checked before the first one starts."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fedmr_flwr.analysis.studies.earlier import check_same
from fedmr_flwr.analysis.studies.study import Cell, Study, Variant, cells_of, check_overrides
from fedmr_flwr.config.identity import identity
from fedmr_flwr.config.loading import load
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs.folder import RunFolder

# What trains: `launch.engines.run`, or a stand-in.
Train = Callable[[Settings, Display, RunFolder | None], RunFolder]


@dataclass(frozen=True)
class Planned:
    """A run of a study.

    Attributes:
        cell: its row.
        variant: its column.
        settings: with its seed and its folder.
    """

    cell: Cell
    variant: Variant
    settings: Settings

    @property
    def name(self) -> str:
        """Its cell, strategy and seed, for people."""
        cell = f"{self.cell.label}: " if self.cell.label else ""
        return f"{cell}{self.variant.label}, seed {self.settings.seed}"


def plan(study: Study, overrides: Iterable[str], out: Path) -> list[Planned]:
    """Return the runs of a study, cell by cell and strategy by strategy.

    Args:
        study: what is compared.
        overrides: for all runs.
        out: the parent folder of all runs.

    Raises:
        ConfigError: a configuration is wrong, or two runs would be the same.
        RunFolderError: a run's folder contains another run.
    """
    # It is used once for each run, and an iterator would be empty after the first.
    overrides = list(overrides)
    cells = cells_of(study)
    check_overrides(overrides, study)
    runs = []
    for cell in cells:
        common = [*cell.overrides, *overrides]
        for variant in map(Variant, study.strategies):
            options = [*cell.chosen, *variant.overrides()]
            for seed in study.seeds if study.seeds is not None else [load(cell.conf, common, options).seed]:
                folder = out / cell.folder / f"{variant.folder}-seed{seed}"
                settings = load(cell.conf, common, [*options, f"seed={seed}", f"run-dir={folder}"])
                runs.append(Planned(cell, variant, settings))
    if len({run.settings.data.scored_on for run in runs}) > 1:
        raise ConfigError(
            "data.validation: some runs would be scored on it and others on the test set; set it for all"
        )
    _check_distinct(runs)
    # All of them before the first run starts, because an error after hours would be worse.
    for run in runs:
        check_same(run.settings)
    return runs


def _check_distinct(runs: Iterable[Planned]) -> None:
    """Check that no two runs have the same settings or the same folder.

    Raises:
        ConfigError: two have.
    """
    by_identity: dict[str, str] = {}
    by_folder: dict[Path | None, str] = {}
    for run in runs:
        meaning = json.dumps(identity(run.settings), sort_keys=True)
        if meaning in by_identity:
            raise ConfigError(f"'{by_identity[meaning]}' and '{run.name}' are the same run; leave one of them out")
        if run.settings.run_dir in by_folder:
            raise ConfigError(
                f"'{by_folder[run.settings.run_dir]}' and '{run.name}' have the same folder {run.settings.run_dir}; "
                "write one of them differently"
            )
        by_identity[meaning] = by_folder[run.settings.run_dir] = run.name
