"""Who trains what and where units come from: what a client computes is what the server does."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedmr_flwr.core.dealing import Dealing
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.core.recombination import gather
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
