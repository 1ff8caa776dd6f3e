"""Triton kernels that fetch a batch from the training set on the GPU, for one lane or for several."""

import torch
import triton
import triton.language as tl

from fedmr_flwr.data.base import Examples

_BLOCK = 1024


def fetch(
    examples: Examples, order: torch.Tensor, cursor: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy the next examples of a schedule.

    Args:
        examples: the training set; each example is contiguous in memory.
        order: [T] int64, indices of examples.
        cursor: [.] int64, whose first value is the position in `order`.
        size: number of examples.

    Returns:
        Inputs [size, ...] and labels [size].
    """
    inputs, labels = _room(examples, size)
    width = examples.inputs[0].numel()
    with torch.cuda.device_of(inputs):  # Triton launches on the current device, whatever the tensors'
        _fetch[size, triton.cdiv(width, _BLOCK)](
            order, cursor, examples.inputs, examples.labels, inputs, labels, width, _BLOCK
        )
    return inputs, labels


def fetch_all(
    examples: Examples, orders: torch.Tensor, plan: torch.Tensor, step: torch.Tensor, counts: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy the next examples of several schedules.

    Args:
        examples: the training set; each example is contiguous in memory.
        orders: [K, T] int64, indices of examples.
        plan: [S, K, 2] int64: in each step, of each lane, the position in its order, and how many examples it uses.
        step: [] int64.
        counts: [K] int32, set to these numbers of examples.
        size: how many examples a lane has room for.

    Returns:
        Inputs [K * size, ...] and labels [K * size]; what lies behind a lane's examples is undefined.
    """
    lanes, length = orders.shape
    inputs, labels = _room(examples, lanes * size)
    width = examples.inputs[0].numel()
    with torch.cuda.device_of(inputs):
        _fetch_all[size, triton.cdiv(width, _BLOCK), lanes](
            orders, plan, step, examples.inputs, examples.labels, inputs, labels, counts, length, width, _BLOCK
        )
    return inputs, labels


def _room(examples: Examples, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = examples.inputs
    return source.new_empty((size, *source.shape[1:])), examples.labels.new_empty(size)


@triton.jit
def _copy(example, row, chunk, source, known, inputs, labels, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Copy a part of an example, and with the first part its label."""
    column = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    tl.store(inputs + row * WIDTH + column, tl.load(source + example * WIDTH + column, mask=inside), mask=inside)
    if chunk == 0:
        tl.store(labels + row, tl.load(known + example))


@triton.jit
def _fetch(order, cursor, source, known, inputs, labels, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    example = tl.load(order + tl.load(cursor) + row)
    _copy(example, row, tl.program_id(1), source, known, inputs, labels, WIDTH, BLOCK)


@triton.jit
def _fetch_all(
    orders, plan, step, source, known, inputs, labels, counts, LENGTH: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row, chunk, lane = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    plan += 2 * (tl.load(step) * tl.num_programs(2) + lane)
    first, count = tl.load(plan), tl.load(plan + 1)
    if (row == 0) & (chunk == 0):
        tl.store(counts + lane, count.to(tl.int32))
    if row < count:
        example = tl.load(orders + lane * LENGTH + first + row)
        _copy(example, lane * tl.num_programs(0) + row, chunk, source, known, inputs, labels, WIDTH, BLOCK)
