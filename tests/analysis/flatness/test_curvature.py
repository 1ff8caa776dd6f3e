"""Eigenvalues and traces of matrices that are known."""

import numpy as np
import pytest

from fedmr_flwr.analysis.flatness.curvature import top_eigenvalues, trace

P = 60


def products(matrix):
    return lambda vectors: vectors @ matrix


@pytest.fixture
def matrix(rng):
    """Return a symmetric matrix with the eigenvalues -3, 1, 2, ..., 59."""
    directions = np.linalg.qr(rng.standard_normal((P, P)))[0]
    values = np.arange(P, dtype=np.float64)
    values[0] = -3
    return directions * values @ directions.T


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_finds_the_largest_eigenvalues(matrix, rng):
    assert top_eigenvalues(products(matrix), P, 5, rng) == pytest.approx([59, 58, 57, 56, 55], rel=1e-4)


def test_a_large_negative_eigenvalue_is_not_among_the_largest(rng):
    assert top_eigenvalues(products(np.diag([-100.0, *range(P - 1)])), P, 2, rng) == pytest.approx([58, 57], rel=1e-4)


def test_a_small_matrix_is_decomposed(rng):
    assert top_eigenvalues(products(np.diag([1.0, 3, 2])), 3, 3, rng) == pytest.approx([3, 2, 1])


def test_the_same_draws_give_the_same_eigenvalues(matrix):
    one, other = (top_eigenvalues(products(matrix), P, 5, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(one, other)


def test_the_trace_of_a_diagonal_matrix_has_no_error(rng):
    assert trace(products(np.diag(np.arange(P))), P, 4, rng) == (P * (P - 1) / 2, 0)


def test_the_trace_is_within_its_error(matrix, rng):
    # v'Av over random signs has the variance 2 (|A|^2 - |diag A|^2).
    probes = 2000
    found = trace(products(matrix), P, probes, rng)
    error = np.sqrt(2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)) / probes)
    assert found.error == pytest.approx(error, rel=0.1)
    assert abs(found.mean - np.trace(matrix)) < 3 * error
