"""The mathematics of `fedmr_flwr.core.population` for models that are tensors on a GPU and stay there.

Some vectors may be NumPy arrays, such as the models of slots that no client has trained yet; they are copied there.
A separate module, imported when needed, because `population` also serves programs without PyTorch.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedmr_flwr.core.layout import Columns

Vector = torch.Tensor | NDArray[Any]
Rows = Sequence[Any] | NDArray[Any]


def to_common_device(vectors: Rows) -> list[torch.Tensor]:
    """Bring vectors, at least one of them a tensor, to the device of the first tensor."""
    device = next(vector.device for vector in vectors if isinstance(vector, torch.Tensor))
    return [vector if isinstance(vector, torch.Tensor) else torch.tensor(vector).to(device) for vector in vectors]


def mean(rows: Rows, weights: Sequence[float] | None = None) -> Any:
    """Average a population: the same operations in the same order as `population.mean`, and so the same bits.

    Args:
        rows: K vectors [P], K >= 1.
        weights: K numbers >= 0, not all zero; None weighs all the same.

    Returns:
        [P] of the rows' type.
    """
    shares = np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64)
    assert len(shares) == len(rows) > 0 and shares.sum() > 0
    vectors = to_common_device(rows)
    total = torch.zeros_like(vectors[0], dtype=torch.float64)
    for row, share in zip(vectors, shares.tolist(), strict=True):
        # In two steps: a fused multiply-add would round once where NumPy rounds twice.
        total += row if share == 1 else row.double() * share
    # Not by a Python number: CUDA would multiply by its reciprocal, which rounds differently.
    return (total / torch.tensor(shares.sum(), device=total.device)).to(vectors[0].dtype)


def similarity(rows: Rows, columns: Columns | None = None) -> float:
    """Return the mean cosine similarity over all pairs of models, as `population.similarity`, up to rounding."""
    count = len(rows)
    if count == 1:
        return 1.0
    vectors = to_common_device(rows)
    parts = _joined([slice(0, len(vectors[0]))] if columns is None else columns)

    def chosen(row: torch.Tensor) -> torch.Tensor:
        # One row at a time: all of them together would be another population in the GPU's memory.
        pieces = [row[part] for part in parts]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    norms = torch.stack([torch.linalg.vector_norm(chosen(row), dtype=torch.float64) for row in vectors])
    scales = torch.where(norms > 0, 1 / norms, 0.0)
    total = torch.zeros_like(chosen(vectors[0]), dtype=torch.float64)
    for row, scale in zip(vectors, scales, strict=True):
        total += chosen(row) * scale
    # One transfer for both numbers: each `.item()` would wait for the GPU.
    of_sum, some = torch.stack([torch.dot(total, total), (norms > 0).sum()]).tolist()
    return float(np.clip((of_sum - some) / (count * (count - 1)), -1, 1))


def _joined(columns: Sequence[slice]) -> list[slice]:
    """Return ranges of columns with those joined that follow each other, because each takes a kernel."""
    joined: list[slice] = []
    for part in columns:
        if joined and joined[-1].stop == part.start:
            part = slice(joined.pop().start, part.stop)
        joined.append(part)
    return joined


def spread(rows: Rows, center: Vector, units: Sequence[Columns]) -> list[float]:
    """Return the distance of the models from their center, unit by unit, as `population.spread`, up to rounding."""
    *vectors, middle = to_common_device([*rows, center])
    squares = torch.zeros_like(middle, dtype=torch.float64)
    for row in vectors:
        squares += (row.double() - middle).square()
    # Squares of all columns first, then one sum for each unit: a few kernels instead of some for each unit and row.
    sums = torch.stack([sum((squares[part].sum() for part in unit), squares.new_zeros(())) for unit in units])
    values = [len(vectors) * sum(part.stop - part.start for part in unit) for unit in units]
    return [float(np.sqrt(total / size)) if size else 0.0 for total, size in zip(sums.tolist(), values, strict=True)]


def join(pieces: Iterable[Vector]) -> torch.Tensor:
    """Concatenate vectors, at least one of them a tensor."""
    return torch.cat(to_common_device(list(pieces)))
