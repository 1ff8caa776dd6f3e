"""A global model that has lost what it had learnt is noticed, once."""

import pytest

from fedmr_flwr.server.collapse import Watch

CHANCE = 0.1


def seen(numbers, lengths=None, chance=CHANCE, before=()):
    """The rounds in which a collapse is noticed, of (loss, accuracy) by round."""
    rows = [
        {"round": at, "test-loss": loss, "test-accuracy": accuracy} for at, (loss, accuracy) in enumerate(numbers, 1)
    ]
    watch = Watch(chance, rows[: len(before)])
    return {row["round"]: line for row in rows[len(before) :] if (line := watch.look(row, lambda: lengths or {}))}


@pytest.mark.parametrize(
    ("numbers", "rounds"),
    [
        ([(2.3, 0.1), (1.0, 0.6), (0.3, 0.9), (3.0, 0.5)], [4]),  # ten times the best loss
        ([(2.3, 0.1), (1.0, 0.6), (0.3, 0.9), (2.9, 0.5)], []),
        ([(2.3, 0.1), (1.0, 0.6), (2.3, 0.1)], [3]),  # at chance after having been better
        ([(2.3, 0.1), (2.2, 0.18), (2.3, 0.1)], []),  # hardly better
        ([(1.0, 0.6), (2.3, 0.1), (2.3, 0.1), (2.3, 0.1)], [2]),  # said once
        ([(1.0, 0.6), (2.3, 0.1), (0.9, 0.7), (2.3, 0.1)], [2, 4]),
        ([(1e-5, 1.0), (1e-3, 1.0)], []),  # no answer has changed
        ([(50.0, 0.1)], []),  # there was nothing to lose
    ],
)
def test_collapse_is_noticed(numbers, rounds):
    assert [*seen(numbers)] == rounds


def test_two_classes_have_another_chance():
    assert [*seen([(0.6, 0.7), (0.7, 0.5)], chance=0.5)] == [2]
    assert [*seen([(0.6, 0.54), (0.7, 0.5)], chance=0.5)] == []


def test_largest_updates_are_named():
    lengths = {4: 1.0, 0: 2.0, 7: 300.0, 2: 1.0, 5: 1.5}
    (line,) = seen([(0.35, 0.94), (23.0, 0.0781)], lengths).values()
    assert line == (
        "the global model has collapsed: loss 23, the best was 0.35 in round 1; accuracy 0.0781, the best was 0.9400 "
        "in round 1; largest updates in this round, in multiples of the median: client 7 (200), client 0 (1.33), "
        "client 5 (1)"
    )


def test_rounds_without_evaluation_are_passed_over():
    assert Watch(CHANCE).look({"round": 1}, dict) is None


def test_resumed_run_remembers_the_best():
    assert [*seen([(1.0, 0.6), (2.3, 0.1)], before=[1])] == [2]


def test_updates_are_measured_only_in_a_collapse():
    measured = []
    watch = Watch(CHANCE)
    for number, (loss, accuracy) in enumerate([(0.35, 0.94), (0.34, 0.95), (23.0, 0.0781)], 1):
        watch.look({"round": number, "test-loss": loss, "test-accuracy": accuracy}, lambda: measured.append(1) or {})
    assert len(measured) == 1
