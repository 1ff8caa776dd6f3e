"""Successive halving: after which rounds trials are compared, and which continue."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmr_flwr.analysis.tuning.halving import promoted, rungs

ACCURACIES = st.one_of(st.just(-math.inf), st.sampled_from([0.1, 0.2, 0.5]), st.floats(0, 1))


@pytest.mark.parametrize(
    ("rounds", "number", "expected"),
    [(90, 3, [10, 30, 90]), (100, 3, [12, 34, 100]), (90, 1, [90]), (2, 3, [1, 2]), (1, 5, [1])],
)
def test_rungs_grow_threefold(rounds, number, expected):
    assert rungs(rounds, number) == expected


def test_best_third_and_the_default_continue():
    assert promoted({0: 0.1, 1: 0.9, 2: 0.5, 3: 0.8, 4: 0.7, 5: 0.2, 6: 0.3}) == [0, 1, 3]
    assert promoted({0: 0.9, 1: 0.1, 2: 0.5, 3: 0.8, 4: 0.7, 5: 0.2, 6: 0.3}) == [0, 3, 4]


def test_earlier_of_equal_trials_continues():
    assert promoted({0: 0.5, 1: 0.5, 2: 0.5, 3: 0.5}) == [0, 1]


def test_failed_default_gives_its_place_away():
    assert promoted({0: -math.inf, 1: 0.1, 2: 0.2, 3: 0.3}) == [2, 3]


@given(st.lists(ACCURACIES, min_size=1, max_size=40))
def test_every_strategy_keeps_the_same_number(accuracies):
    scores = dict(enumerate(accuracies))
    kept = promoted(scores)
    good = [number for number in scores if scores[number] > -math.inf]
    assert len(kept) == min(len(good), max(2, math.ceil(len(accuracies) / 3)))
    assert (0 in kept) == (0 in good)
    worst = min((scores[number] for number in kept if number), default=1)
    assert all(scores[number] <= worst for number in good if number not in kept)
