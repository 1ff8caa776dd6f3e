"""Who trains what and where units come from: what a client computes is what the server does."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmr_flwr.core.dealing import Dealing
from fedmr_flwr.core.drawing import draw_clients, draw_slots
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.core.recombination import gather, sources
from fedmr_flwr.core.units import units

UNITS = units(Layout.of({name: np.zeros(1, np.float32) for name in "abc"}), "tensor")
seeds = st.integers(0, 2**32 - 1)


@given(st.integers(1, 6), seeds, st.sets(st.integers(1, 5)))
def test_trace_finds_where_a_unit_was(slots, seed, skipped):
    dealing = Dealing(seed, 6, slots, slots, UNITS, recombines=True)
    first = models = [[(unit, slot) for unit in range(3)] for slot in range(slots)]
    for number in range(1, 6):
        deal = dealing.sources(number)
        models = models if deal is None or number in skipped else gather(models, range(3), deal)
    for slot, model in enumerate(models):
        found = [(unit, dealing.trace(unit, slot, 5, 0, skipped)) for unit in range(3)]
        assert found == model
        assert dealing.trace(0, slot, 5, 5, skipped) == slot
    assert sorted(model[0] for model in models) == sorted(model[0] for model in first)


@given(st.integers(1, 5), st.integers(0, 3), seeds)
def test_each_drawn_client_has_one_slot(clients, waiting, seed):
    assigned = Dealing(seed, 5, clients, clients + waiting, UNITS, recombines=True).assign(3)
    drawn = [client for client in assigned if client is not None]
    assert len(assigned) == clients + waiting
    assert len(set(drawn)) == len(drawn) == clients


def test_units_of_independent_models_stay():
    dealing = Dealing(0, 5, 3, 3, UNITS, recombines=False)
    assert [dealing.sources(number) for number in range(1, 9)] == [None] * 8
    assert dealing.trace(1, 2, 8, 1, ()) == 2


@pytest.mark.parametrize("number", [1, 2, 3, 9])
def test_draws_and_deals_are_those_of_a_run_without_seals(number):
    dealing = Dealing(7, 6, 3, 5, UNITS, recombines=True)
    drawn = dict(zip(draw_slots(number, 7, 5, 3), draw_clients(number, 7, 6, 3), strict=True))
    assert dealing.assign(number) == tuple(map(drawn.get, range(5)))
    np.testing.assert_equal(dealing.sources(number), sources(7, number, 0, 3, 5))


def test_no_more_clients_are_drawn_than_there_are():
    assert sorted(Dealing(0, 2, 3, 2, UNITS, recombines=True).assign(1)) == [0, 1]


def test_fingerprint_is_of_all_that_the_deals_follow_from():
    dealing, first = Dealing(0, 5, 3, 4, UNITS, recombines=True), UNITS[0]
    others = [
        {"seed": 1}, {"clients": 6}, {"clients_per_round": 2}, {"slots": 5}, {"recombines": False},
        {"units": UNITS[:2]}, {"units": UNITS[::-1]}, {"units": (replace(first, ints=(slice(0, 1),)), *UNITS[1:])},
    ]  # fmt: skip
    found = {dealing.fingerprint, *(replace(dealing, **other).fingerprint for other in others)}
    assert len(found) == 1 + len(others)
    assert replace(dealing).fingerprint == dealing.fingerprint
