"""The search space of each strategy, and its trials."""

import json

import pytest

from fedmr_flwr.analysis.tuning.space import draw, space_of
from fedmr_flwr.analysis.tuning.trials import plan
from fedmr_flwr.config.loading import load
from fedmr_flwr.config.registry import ALGORITHMS
from fedmr_flwr.core.distributions import Choice, LogUniform
from fedmr_flwr.errors import ConfigError, RunFolderError
from fedmr_flwr.server.experiment import create_folder

TOY = ["rounds=9", "clients=6", "clients-per-round=3", "device=cpu", "engine=in-process"]


def trials(out, *overrides, strategies=("fedprox",), number=4, conf="quickstart"):
    return plan(conf, [*TOY, *overrides], strategies, number, out)


def ends(own):
    return own.values if isinstance(own, Choice) else (own.low, own.high)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_value_of_a_space_is_accepted(name):
    settings = load("quickstart", [f"strategy.name={name}"])
    space = space_of(settings)
    assert space.keys() >= {"training.lr", "training.weight-decay"}
    for key, own in space.items():
        for value in ends(own):
            load("quickstart", [f"strategy.name={name}", f"{key}={json.dumps(value)}"])


def test_learning_rates_are_around_the_configured_one():
    assert space_of(load("quickstart", ["training.lr=0.2"]))["training.lr"] == LogUniform(0.02, 2)


def test_a_local_rule_brings_its_options():
    settings = load("quickstart", ["strategy.local-rule=fedprox"])
    assert space_of(settings).keys() >= {"strategy.unit", "strategy.mu"}


def test_first_trial_has_the_configured_values(tmp_path):
    first, *others = trials(tmp_path)
    assert first.values == {"training.lr": 0.05, "training.weight-decay": 0.0, "strategy.mu": 0.01}
    assert first.settings.training == load("quickstart").training
    for trial in others:
        assert trial.settings.training.lr == trial.values["training.lr"] != 0.05
        assert trial.settings.strategy.rule_options.mu == trial.values["strategy.mu"]


def test_strategies_share_learning_rates(tmp_path):
    found = trials(tmp_path, strategies=["fedmr", "fedprox"])
    shared = [(own.values["training.lr"], own.values["training.weight-decay"]) for own in found]
    assert shared[:4] == shared[4:]
    assert len(set(shared)) == 4


def test_more_trials_begin_with_the_same_ones(tmp_path):
    few, more = trials(tmp_path, number=3), trials(tmp_path, number=6)
    assert few == more[:3]


def test_seed_decides_the_values(tmp_path):
    space = space_of(load("quickstart"))
    assert draw(space, 0, 1) == draw(space, 0, 1) != draw(space, 1, 1)
    assert trials(tmp_path, "seed=1")[1].values == draw(space_of(load("quickstart", ["strategy.name=fedprox"])), 1, 1)


def test_an_option_after_a_slash_is_not_tuned(tmp_path):
    for trial in trials(tmp_path, strategies=["fedprox/mu=0.5/training.lr=0.1"]):
        assert trial.values.keys() == {"training.weight-decay"}
        assert (trial.settings.strategy.rule_options.mu, trial.settings.training.lr) == (0.5, 0.1)


def test_every_trial_has_a_validation_part(tmp_path):
    assert {trial.settings.data.validation for trial in trials(tmp_path)} == {0.1}
    assert {trial.settings.data.validation for trial in trials(tmp_path, "data.validation=0.3")} == {0.3}


def test_a_cosine_keeps_its_length_in_few_rounds(tmp_path):
    trial = trials(tmp_path, "training.schedule=cosine")[1]
    assert trial.until(1).settings.training.over(1) == trial.settings.training.over(9)
    assert trial.until(1).settings.training.decay_rounds == 9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.validation=0", "^fedprox: data.validation = 0: trials must not be scored on the test set"),
        ("partition.test-fraction=0.2", "^fedprox: partition.test-fraction = 0.2: the clients' test examples"),
        ("stop.patience=3", "^fedprox: stop: how long a trial trains is for tuning to decide"),
        ("run-dir=x", "^'run-dir=x': use --strategies and, for all runs, --out FOLDER"),
        ("strategy.name=fedavg", "^'strategy.name=fedavg': use --strategies"),
    ],
)
def test_what_would_read_test_examples_is_refused(tmp_path, change, words):
    with pytest.raises(ConfigError, match=words):
        trials(tmp_path, change)


def test_a_strategy_must_not_leave_validation_out(tmp_path):
    with pytest.raises(ConfigError, match="^fedmr/data.validation=0: data.validation = 0: trials must not be scored"):
        trials(tmp_path, strategies=["fedavg", "fedmr/data.validation=0"])


def test_strategies_must_have_the_same_rounds(tmp_path):
    with pytest.raises(ConfigError, match="^fedmr/rounds=3: rounds = 3: all strategies must have 9 rounds"):
        trials(tmp_path, strategies=["fedavg", "fedmr/rounds=3"])


def test_a_drawn_value_that_does_not_fit_is_named_with_its_trial(tmp_path):
    with pytest.raises(ConfigError, match=r"^fedprox, trial \d: .*final-lr.*above training.lr"):
        trials(tmp_path, "training.schedule=cosine", "training.final-lr=0.05")


def test_a_study_is_refused():
    with pytest.raises(ConfigError, match="studies/small-units is a study; name one of its configurations"):
        plan("studies/small-units", [], ["fedmr"], 2, None)


def test_an_earlier_trial_may_have_fewer_rounds_but_no_other_values(tmp_path):
    create_folder(trials(tmp_path)[1].until(1).settings)
    trials(tmp_path)
    with pytest.raises(RunFolderError, match=r"trial-001 was started with seed = 0, but now it is 1; choose .*--out"):
        trials(tmp_path, "seed=1")
