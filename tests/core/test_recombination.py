"""The invariants of recombination, bit for bit where they are exact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmr_flwr.core.recombination import draw_permutations, gather, sources
from fedmr_flwr.core.units import sorted_ranges

P = 12
# The second unit lies in two places, as all biases of a network would.
UNITS = [(slice(0, 3),), (slice(3, 4), slice(9, 12)), (slice(4, 9),)]
populations = st.tuples(st.integers(1, 12), st.integers(0, 2**32 - 1))


def random_rows(k, seed):
    return np.random.default_rng(seed).normal(size=(k, P)).astype(np.float32)


def recombine(rows, units, rng):
    """Recombine the rows of a matrix [K, P], as `Recombination` does with models."""
    ranges = sorted_ranges(units, P)
    pieces = [[row[part] for part, _ in ranges] for row in rows]
    permutations = draw_permutations(len(units), len(rows), rng)
    return np.stack([np.concatenate(model) for model in gather(pieces, [unit for _, unit in ranges], permutations)])


@given(populations)
def test_each_unit_is_permuted_whole(population):
    k, seed = population
    rows = np.repeat(np.arange(k, dtype=np.float32)[:, None], P, axis=1)  # row i is filled with i
    mixed = recombine(rows, UNITS, np.random.default_rng(seed))
    for unit in UNITS:
        columns = np.concatenate([mixed[:, part] for part in unit], axis=1)
        assert (columns == columns[:, :1]).all(), "the columns of a unit move together"
        assert sorted(columns[:, 0]) == list(range(k)), "sources are drawn without replacement"


@given(populations)
def test_pieces_keep_their_bits(population):
    k, seed = population
    rows = random_rows(k, seed)
    mixed = recombine(rows, UNITS, np.random.default_rng(seed))
    for part in (part for unit in UNITS for part in unit):
        assert sorted(row.tobytes() for row in mixed[:, part]) == sorted(row.tobytes() for row in rows[:, part])


@given(populations)
def test_keeps_mean_and_distances(population):
    k, seed = population
    rows, point = random_rows(k, seed).astype(np.float64), np.random.default_rng(seed + 1).normal(size=P)
    mixed = recombine(rows, UNITS, np.random.default_rng(seed))
    np.testing.assert_allclose(mixed.mean(0), rows.mean(0), rtol=1e-12, atol=1e-14)
    # Lemma 4.4 of the paper: the sum of squared distances to any fixed point.
    np.testing.assert_allclose(((mixed - point) ** 2).sum(), ((rows - point) ** 2).sum(), rtol=1e-12)


@given(populations)
def test_input_is_not_changed(population):
    k, seed = population
    rows = random_rows(k, seed)
    before = rows.copy()
    recombine(rows, UNITS, np.random.default_rng(seed))
    np.testing.assert_array_equal(rows, before)


@given(st.integers(0, 2**32 - 1))
def test_equal_models_stay_as_they_are(seed):
    one = random_rows(1, seed)
    np.testing.assert_array_equal(recombine(one, UNITS, np.random.default_rng(seed)), one)
    same = np.repeat(one, 5, axis=0)
    np.testing.assert_array_equal(recombine(same, UNITS, np.random.default_rng(seed)), same)


@given(populations)
def test_one_unit_permutes_whole_models(population):
    k, seed = population
    rows = random_rows(k, seed)
    mixed = recombine(rows, [(slice(0, P),)], np.random.default_rng(seed))
    assert sorted(row.tobytes() for row in mixed) == sorted(row.tobytes() for row in rows)


def test_permutations_are_uniform():
    draws = np.stack([draw_permutations(2, 3, np.random.default_rng(seed)) for seed in range(6000)])
    codes = draws[:, 0] @ [9, 3, 1] * 27 + draws[:, 1] @ [9, 3, 1]
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == 36, "every pair of permutations of three slots occurs"
    expected = 6000 / 36
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 66.6, "35 degrees of freedom: larger by chance once in a thousand"


def test_pieces_are_views_in_column_order():
    rows = [np.full(P, slot, np.float32) for slot in range(3)]
    ranges = sorted_ranges(UNITS, P)
    pieces = [[row[part] for part, _ in ranges] for row in rows]
    (gathered,) = gather(pieces, [unit for _, unit in ranges], np.array([[2], [0], [1]]))
    assert np.concatenate(gathered).tolist() == [2, 2, 2, 0, 1, 1, 1, 1, 1, 0, 0, 0]
    assert all(any(np.shares_memory(piece, row) for row in rows) for piece in gathered)


@pytest.mark.parametrize(
    "units",
    [[(slice(0, 5),), (slice(4, P),)], [(slice(0, 5),), (slice(6, P),)], [(slice(0, P - 1),)], [(slice(1, P),)]],
    ids=["overlap", "gap", "short", "late"],
)
def test_units_must_cover_all_columns(units):
    with pytest.raises(ValueError, match="cover 12 columns once"):
        recombine(random_rows(3, 0), units, np.random.default_rng(0))


def test_empty_unit_is_allowed():
    assert sorted_ranges([(slice(0, P),), (), (slice(4, 4),)], P) == [(slice(0, P), 0)]


def test_gathers_pieces_of_any_type():
    pieces = [["a0", "a1"], ["b0", "b1"]]
    assert gather(pieces, [1, 0], np.array([[0, 1], [1, 0]])) == [["b0", "a1"], ["a0", "b1"]]


def test_sources_are_deterministic():
    first = sources(7, 5, 2, 4, 3)
    np.testing.assert_array_equal(sources(7, 5, 2, 4, 3), first)
    assert not np.array_equal(sources(7, 6, 2, 4, 3), first)


@pytest.mark.parametrize(("number", "recombined"), [(1, False), (2, False), (3, False), (4, True)])
def test_first_stage_has_no_sources(number, recombined):
    assert (sources(0, number, 2, 4, 3) is not None) == recombined
