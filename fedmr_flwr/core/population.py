"""Statistics of a population: the mean of K models, their similarity and their spread. Pure functions.

`Rows` are K models, each a vector of P columns: a [K, P] matrix or a list of K vectors, such as views
of received messages. No function changes its input. Vectors that are PyTorch tensors stay on their device.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr.core.layout import Columns, Floats, Packed

Rows = Sequence[NDArray[Any]] | NDArray[Any]

# Columns per step: float64 sums of this many stay in a core's cache.
_BLOCK = 1 << 15


def mean(rows: Rows, weights: Sequence[float] | None = None) -> Floats:
    """Average a population.

    The sums are in float64 and in the order of the rows, so the result does not depend on threads or block sizes.

    Args:
        rows: K vectors [P], K >= 1.
        weights: K numbers >= 0, not all zero; None weighs all the same.

    Returns:
        [P] of the rows' type, sum(weights[i] * rows[i]) / sum(weights).
    """
    if not _on_host(rows):
        from fedmr_flwr.core import tensors

        return tensors.mean(rows, weights)  # type: ignore[no-any-return]
    # Not `np.average`, which would copy the population into one float64 matrix first.
    shares = np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64)
    assert len(shares) == len(rows) > 0 and shares.sum() > 0
    out = np.empty(len(rows[0]), rows[0].dtype)
    sums, scaled = np.empty(_BLOCK), np.empty(_BLOCK)  # allocated once: fresh memory costs more than the sums
    for block in _blocks(len(out)):
        total = sums[: block.stop - block.start]
        total[:] = 0
        for row, share in zip(rows, shares, strict=True):
            # The product would give the same bits, and takes another pass over the row.
            if share == 1:
                total += row[block]
            else:
                total += np.multiply(row[block], share, out=scaled[: len(total)])
        total /= shares.sum()
        out[block] = total
    return out


def similarity(rows: Rows, columns: Columns | None = None) -> float:
    """Return the mean cosine similarity over all pairs of models, in double precision.

    With unit vectors u_i, the sum of all K(K-1) ordered cosines is |u_1 + ... + u_K|^2 - K, so the pairs
    need not be computed one by one.

    Args:
        rows: K vectors [P], K >= 1; a zero vector counts as orthogonal to all others.
        columns: to compare, such as `Layout.parameters`; None for all.

    Returns:
        The mean of the K(K-1)/2 cosines, in [-1, 1]; 1 for a single model.
    """
    if not _on_host(rows):
        from fedmr_flwr.core import tensors

        return tensors.similarity(rows, columns)
    count = len(rows)
    if count == 1:
        return 1.0
    blocks = _blocks_of(rows, columns)
    norms = np.array([_norm(row, blocks) for row in rows])
    scales = np.divide(1, norms, out=np.zeros(count), where=norms > 0)
    sums, scaled = np.empty(_BLOCK), np.empty(_BLOCK)
    of_sum = 0.0
    for block in blocks:
        total = sums[: block.stop - block.start]
        total[:] = 0
        for row, scale in zip(rows, scales, strict=True):
            total += np.multiply(row[block], scale, out=scaled[: len(total)])
        of_sum += float(total @ total)
    return float(np.clip((of_sum - np.count_nonzero(norms)) / (count * (count - 1)), -1, 1))


def cosines(rows: Rows, columns: Columns | None = None) -> NDArray[np.float64]:
    """Return the cosine similarity of every pair of models, in double precision.

    Args:
        rows: K vectors [P]; a zero vector counts as orthogonal to all others.
        columns: to compare, such as `Layout.parameters`; None for all.

    Returns:
        [K, K], symmetric.
    """
    products = np.zeros((len(rows), len(rows)))
    for block in _blocks_of(rows, columns):
        some = np.stack([row[block] for row in rows]).astype(np.float64)
        products += some @ some.T
    norms = np.sqrt(np.diagonal(products))
    scales = np.divide(1, norms, out=np.zeros(len(rows)), where=norms > 0)
    return np.asarray(scales[:, None] * products * scales)


def squared_distance(one: NDArray[Any], other: NDArray[Any], columns: Columns) -> float:
    """Return |one - other|^2 over some columns of two vectors [P], in double precision."""
    differences = (np.subtract(one[part], other[part], dtype=np.float64) for part in columns)
    return sum(float(np.vdot(values, values)) for values in differences)


def distance(one: NDArray[Any], other: NDArray[Any], columns: Columns) -> float:
    """Return |one - other| over some columns of two vectors [P], in double precision."""
    return math.sqrt(squared_distance(one, other, columns))


def spread(rows: Rows, center: NDArray[Any], units: Sequence[Columns]) -> list[float]:
    """Return the distance of the models from their center, unit by unit.

    Args:
        rows: K vectors [P].
        center: [P], for instance their mean.
        units: the column ranges of each unit.

    Returns:
        For each unit the root mean square of (row - center) over its values and all rows: a standard
        deviation across models, in the units of the weights; 0 for a unit without values.
    """
    if not _on_host([*rows, center]):
        from fedmr_flwr.core import tensors

        return tensors.spread(rows, center, units)

    def squares(unit: Columns, dtype: type[np.floating[Any]]) -> float:
        total = 0.0
        for block in (block for part in unit for block in _blocks(part.stop, part.start)):
            for row in rows:
                off = np.subtract(row[block], center[block], dtype=dtype)
                total += float(np.vdot(off, off))
        return total

    deviations = []
    for unit in units:
        with np.errstate(over="ignore"):
            total = squares(unit, np.float32)
        if not np.isfinite(total):  # the squares of large but finite values overflow float32
            total = squares(unit, np.float64)
        values = len(rows) * sum(part.stop - part.start for part in unit)
        deviations.append(float(np.sqrt(total / values)) if values else 0.0)
    return deviations


def average(models: Sequence[Packed], weights: Sequence[float] | None = None) -> Packed:
    """Average models; integer buffers, such as BatchNorm's counters, take the elementwise maximum.

    Args:
        models: K models of one layout, K >= 1.
        weights: K numbers >= 0, not all zero; None weighs all the same.
    """
    floats = mean([model.floats for model in models], weights)
    # A mean of counters would be a fraction; the maximum never falls, like the counter of batches itself.
    return Packed(floats, np.max([model.ints for model in models], axis=0))


def _on_host(rows: Rows) -> bool:
    """Return whether all vectors are NumPy arrays; for others `fedmr_flwr.core.tensors` is used."""
    return all(isinstance(row, np.ndarray) for row in rows)


def _norm(row: NDArray[Any], blocks: Sequence[slice]) -> float:
    """Return the length of a vector over some blocks, in double precision."""
    parts = (row[block].astype(np.float64, copy=False) for block in blocks)
    return math.sqrt(sum(float(np.vdot(part, part)) for part in parts))


def _blocks_of(rows: Rows, columns: Columns | None) -> list[slice]:
    """Divide columns of some rows into blocks."""
    whole = (slice(0, len(rows[0])),) if columns is None else columns
    return [block for part in whole for block in _blocks(part.stop, part.start)]


def _blocks(stop: int, start: int = 0) -> Iterator[slice]:
    return (slice(at, min(at + _BLOCK, stop)) for at in range(start, stop, _BLOCK))
