"""A population of tensors: the same as one of NumPy vectors."""

import numpy as np
import pytest
import torch

from fedmr_flwr.core import population, tensors
from fedmr_flwr.core.layout import Packed

RNG = np.random.default_rng(0)
ROWS = [(RNG.normal(size=70000) * 10.0 ** RNG.integers(-3, 4)).astype(np.float32) for _ in range(7)]
UNITS = [(slice(0, 10), slice(50, 60000)), (slice(10, 50),), (), (slice(60000, 70000),)]


def as_tensors(rows):
    return [torch.from_numpy(row) for row in rows]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weights", [None, [3, 1, 4, 1, 5, 9, 2.6], [0, 0, 1, 0, 0, 0, 0]])
def test_mean_equals_numpys_exactly(weights, dtype):
    rows = [row.astype(dtype) for row in ROWS]
    expected = population.mean(rows, weights)
    found = population.mean(as_tensors(rows), weights).numpy()
    assert found.dtype == expected.dtype == dtype
    assert found.tobytes() == expected.tobytes()


def test_mean_sums_in_float64():
    found = population.mean(as_tensors([np.full(1, value, np.float32) for value in (1e8, 1, -1e8, 3)]))
    assert found.item() == 1


def test_rows_may_be_mixed():
    mixed = [*as_tensors(ROWS[:3]), *ROWS[3:]]
    assert population.mean(mixed).numpy().tobytes() == population.mean(ROWS).tobytes()
    joined = tensors.join([ROWS[0][:2], torch.from_numpy(ROWS[1][2:5])])
    assert joined.tolist() == [*ROWS[0][:2], *ROWS[1][2:5]]


def test_similarity_and_spread_agree():
    rows = [*ROWS, np.zeros(70000, np.float32)]
    found = population.similarity(as_tensors(rows))
    assert found == pytest.approx(population.similarity(rows), abs=1e-6)
    assert found == pytest.approx(float(np.triu(population.cosines(rows), 1).sum() / 28), abs=1e-6)
    assert population.similarity(as_tensors(ROWS[:1])) == 1
    center = population.mean(ROWS)
    found = population.spread(as_tensors(ROWS), center, UNITS)
    assert found == pytest.approx(population.spread(ROWS, center, UNITS), rel=1e-5)
    assert found[2] == 0


def test_hand_worked_numbers():
    rows = as_tensors([np.array([1, 0, 2], np.float32), np.array([0, 1, 4], np.float32)])
    assert population.mean(rows).tolist() == [0.5, 0.5, 3]
    assert population.mean(rows, [1, 3]).tolist() == [0.25, 0.75, 3.5]
    assert population.similarity(rows) == pytest.approx(8 / np.sqrt(5 * 17))
    assert population.spread(rows, population.mean(rows), [(slice(0, 2),), (slice(2, 3),)]) == [0.5, 1]


def test_model_returns_to_the_host():
    model = Packed(torch.ones(2), np.zeros(1, np.int64))
    host = model.on_host()
    assert isinstance(host.floats, np.ndarray)
    assert host.on_host() is host
