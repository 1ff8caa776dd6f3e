"""The trials of each strategy, checked before the first one starts."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedmr_flwr.analysis.studies.earlier import check_same
from fedmr_flwr.analysis.studies.study import Variant
from fedmr_flwr.analysis.tuning.space import Space, configured, draw, space_of
from fedmr_flwr.config.identity import LENGTH
from fedmr_flwr.config.loading import load, read_values
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.config.stop import Stop
from fedmr_flwr.errors import ConfigError

# The share of the training examples for validation, unless the configuration has one.
VALIDATION = "data.validation=0.1"


@dataclass(frozen=True)
class Trial:
    """Values of its options with which a strategy is trained: a `studies.jobs.Job`.

    Attributes:
        variant: the strategy.
        number: of the trial; 0 has the configured values.
        space: what is tuned.
        values: of that, by dotted key.
        settings: of the run, with its folder.
    """

    variant: Variant
    number: int
    space: Space
    values: Mapping[str, Any]
    settings: Settings

    @property
    def name(self) -> str:
        """The strategy and the number, for people."""
        return f"{self.variant.label}, trial {self.number}"

    def until(self, rounds: int) -> "Trial":
        """Return the trial with fewer rounds."""
        return replace(self, settings=self.settings.model_copy(update={"rounds": rounds}))


def plan(conf: str, overrides: Sequence[str], strategies: Iterable[str], number: int, out: Path) -> list[Trial]:
    """Return the trials, strategy by strategy.

    Args:
        conf: the configuration.
        overrides: for all trials.
        strategies: with options after slashes, which are not tuned.
        number: of the trials of each strategy.
        out: the parent folder of their runs.

    Raises:
        ConfigError: a configuration is wrong, or would let a trial see test examples.
        RunFolderError: a run's folder contains another run.
    """
    if "cells" in read_values(conf):
        raise ConfigError(f"{conf} is a study; name one of its configurations")
    for override in overrides:
        if override.partition("=")[0] in ("run-dir", "strategy", "strategy.name"):
            raise ConfigError(f"'{override}': use --strategies and, for all runs, --out FOLDER")
    typed = any(override.partition("=")[0] == "data.validation" for override in overrides)
    common = [*overrides, *([] if typed or load(conf, overrides).data.validation else [VALIDATION])]
    trials: list[Trial] = []
    for variant in map(Variant, strategies):
        options = variant.overrides()
        own = [*common, *options]
        usual = load(conf, own)
        _check(variant, usual, trials[0].settings if trials else usual)
        space = space_of(usual, {option.partition("=")[0] for option in options})
        for at in range(number):
            values = draw(space, usual.seed, at) if at else {}
            folder = out / variant.folder / f"trial-{at:03d}"
            given = [f"{key}={json.dumps(value)}" for key, value in values.items()]
            try:
                settings = load(conf, [*own, *given, f"run-dir={folder}"])
            except ConfigError as error:
                raise ConfigError(f"{variant.label}, trial {at}: {error}") from None
            # A cosine of the whole run must not become shorter with it.
            training = settings.training.over(settings.rounds)
            settings = settings.model_copy(update={"training": training})
            trials.append(Trial(variant, at, space, values or configured(usual, space), settings))
    for trial in trials:
        check_same(trial.settings, but=LENGTH)
    return trials


def _check(variant: Variant, settings: Settings, first: Settings) -> None:
    """Check that no trial of a strategy sees test examples, and that it can be compared to those of the first one.

    Raises:
        ConfigError: it does, or cannot.
    """
    if not settings.data.validation:
        raise ConfigError(
            f"{variant.label}: data.validation = 0: trials must not be scored on the test set; leave it out, or set "
            "a share"
        )
    if settings.partition.test_fraction:
        raise ConfigError(
            f"{variant.label}: partition.test-fraction = {settings.partition.test_fraction:g}: the clients' test "
            "examples are among the training examples, which tuning uses; set it to 0 here, and again in the "
            "comparison"
        )
    if settings.stop != Stop():
        raise ConfigError(f"{variant.label}: stop: how long a trial trains is for tuning to decide; leave stop out")
    if settings.rounds != first.rounds:
        raise ConfigError(
            f"{variant.label}: rounds = {settings.rounds}: all strategies must have {first.rounds} rounds, as the "
            "first one"
        )
