"""A Triton kernel that fetches a batch from the training set on the GPU."""

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
    source = examples.inputs
    inputs = torch.empty_like(source[:size])
    labels = torch.empty_like(examples.labels[:size])
    width = source[0].numel()
    with torch.cuda.device_of(source):  # Triton launches on the current device, whatever the tensors'
        grid = (size, triton.cdiv(width, _BLOCK))
        _fetch[grid](order, cursor, source, examples.labels, inputs, labels, width, _BLOCK)
    return inputs, labels


@triton.jit
def _fetch(order, cursor, source, known, inputs, labels, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    example = tl.load(order + tl.load(cursor) + row)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    tl.store(inputs + row * WIDTH + column, tl.load(source + example * WIDTH + column, mask=inside), mask=inside)
    if tl.program_id(1) == 0:
        tl.store(labels + row, tl.load(known + example))
