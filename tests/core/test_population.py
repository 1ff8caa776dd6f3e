"""Means and similarities of a population."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmr_flwr.core.population import cosines, mean, similarity

P = 12


def random_rows(k, seed):
    return np.random.default_rng(seed).normal(size=(k, P)).astype(np.float32)


def test_weighted_mean_by_hand():
    rows = [np.array([1, 10], np.float32), np.array([3, 30], np.float32), np.array([8, 20], np.float32)]
    assert mean(rows).tolist() == [4, 20]
    assert mean(rows, [1, 2, 1]).tolist() == [3.75, 22.5]
    assert mean(rows, [0, 1, 0]).tolist() == [3, 30]


def test_mean_sums_in_float64():
    rows = [np.array([value], np.float32) for value in (1e8, 1, -1e8, 1)]
    assert mean(rows).tolist() == [0.5], "in float32 the ones are lost"


@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_mean_of_equal_models(k, seed):
    row = random_rows(1, seed)[0]
    np.testing.assert_array_equal(mean([row] * k), row)


def test_models_larger_than_a_block():
    rows = np.random.default_rng(0).normal(size=(3, 100_003)).astype(np.float32)
    np.testing.assert_allclose(mean(rows), rows.astype(np.float64).mean(0), rtol=1e-6)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(similarity(rows), (unit @ unit.T)[np.triu_indices(3, 1)].mean(), rtol=1e-4)


def test_similarity_is_the_mean_over_pairs():
    rows = np.array([[1, 0], [0, 2], [3, 3]], np.float32)
    np.testing.assert_allclose(similarity(rows), (0 + 2**-0.5 + 2**-0.5) / 3, rtol=1e-6)
    assert similarity(rows[:1]) == 1
    np.testing.assert_allclose(similarity(np.repeat(rows[2:], 4, axis=0)), 1, rtol=1e-6)
    opposite = np.array([[1, 2], [-1, -2], [0, 0]], np.float32)
    np.testing.assert_allclose(similarity(opposite), -1 / 3, rtol=1e-6)  # nothing is like the zero vector


def test_similarity_over_some_columns():
    rows = np.array([[1, 0, 50], [0, 1, 50]], np.float32)
    assert similarity(rows) == pytest.approx(2500 / 2501)
    assert similarity(rows, (slice(0, 1), slice(1, 2))) == pytest.approx(0, abs=1e-12)
    assert cosines(rows, (slice(0, 2),)).tolist() == [[1, 0], [0, 1]]


def test_similarity_in_double_precision():
    rows = np.random.default_rng(0).normal(size=(2, 3000)).astype(np.float32)
    one, other = rows.astype(np.float64)
    exact = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert similarity(rows) == pytest.approx(exact, abs=1e-14), "in float32 only seven digits are right"
    far = np.array([[1e30, 0], [1e30, 1e30]], np.float32)
    assert similarity(far) == pytest.approx(2**-0.5, rel=1e-12), "the squares overflow float32"
