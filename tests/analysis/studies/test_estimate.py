"""What a study would take."""

import pytest

from fedmr_flwr.analysis.studies.estimate import Cost, _cost_of
from fedmr_flwr.config.loading import load, to_yaml
from fedmr_flwr.runs.folder import RunFolder


def settings_of(*overrides):
    return load("quickstart", ["rounds=10", *overrides])


@pytest.mark.parametrize(
    ("overrides", "seconds"),
    [
        ((), 10 * 1 + 10 * 2),
        (("evaluate-every=4",), 10 * 1 + 3 * 2),
        (("evaluation.clients=end",), 10 * 1 + 10 * 2 + 30),
        (("evaluation.clients=end", "evaluation.train=4"), 10 * 1 + 10 * 2 + 3 * 30),
        (("evaluation.clients=5", "evaluate-every=5"), 10 * 1 + 2 * 2 + 2 * 30),
    ],
)
def test_evaluations_count_when_they_are_due(overrides, seconds):
    assert Cost(1.0, 2.0, 30.0, 0).seconds(settings_of(*overrides), done=0) == seconds


def test_only_rounds_that_are_left_count():
    assert Cost(1.0, 2.0, 30.0, 0).seconds(settings_of("evaluation.clients=end"), done=9) == 1 + 2 + 30
    assert Cost(1.0, 2.0, 30.0, 0).seconds(settings_of("evaluation.clients=end"), done=10) == 0


def test_the_end_is_not_taken_for_every_evaluation(tmp_path):
    settings = settings_of("evaluation.clients=end")
    folder = RunFolder.create(tmp_path / "run", to_yaml(settings))
    for number in range(1, 11):
        folder.add_row({"round": number, "seconds": 1.0, "evaluation-seconds": 32.0 if number == 10 else 2.0})
    cost = _cost_of(folder, settings)
    assert (cost.round_seconds, cost.evaluation_seconds, cost.further_seconds) == (1.0, 2.0, 30.0)
