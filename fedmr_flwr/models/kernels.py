"""Triton kernels for small layers: what PyTorch does in five or ten kernels, in one or two.

A step of a small model is a chain of kernels that take one to four microseconds each, whatever they compute, so the
number of kernels decides how long it takes. A convolution with its bias, max pooling and ReLU is one kernel here; its
backward pass lays the patches out as a matrix, so that both gradients are products of matrices. A linear layer with
its ReLU is one kernel, and two for its backward pass.

Sums have a fixed order, so that results repeat bit for bit.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

# How many values an elementwise kernel's program computes.
_BLOCK = 512


class Shape(NamedTuple):
    """The sizes of a layer; a linear layer is a convolution of 1x1 images.

    Attributes:
        channels: in.
        height: in.
        width: in.
        outputs: channels out.
        kernel: side of the window.
        stride: of the window.
        padding: on every side.
        pool: side of the max pooling window, which is also its stride; 1 for none.
    """

    channels: int
    height: int
    width: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    pool: int = 1

    @property
    def weights(self) -> int:
        """The number of weights of an output channel."""
        return self.channels * self.kernel**2

    @property
    def unpooled(self) -> tuple[int, int]:
        """[H, W] of the convolution's output."""
        height, width = (
            (side + 2 * self.padding - self.kernel) // self.stride + 1 for side in (self.height, self.width)
        )
        return height, width

    @property
    def out(self) -> tuple[int, int]:
        """[H, W] of the layer's output."""
        height, width = self.unpooled
        return height // self.pool, width // self.pool


class Tiles(NamedTuple):
    """How a product is divided: [rows, columns] of a program's part of the result, and how much it sums at a time."""

    rows: int
    columns: int
    inner: int
    warps: int = 4


@triton.jit
def _patches(
    images, column, example, top, left, inside,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, KERNEL: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """Load the pixels that some weights meet at some positions: [weights, positions]."""
    channel, row, place = column // (KERNEL * KERNEL), column // KERNEL % KERNEL, column % KERNEL
    inside = (column < C * KERNEL * KERNEL)[:, None] & inside[None, :]
    if PADDING:
        down, along = top[None, :] + row[:, None], left[None, :] + place[:, None]
        inside &= (down >= 0) & (down < H) & (along >= 0) & (along < W)
    at = (channel * (H * W) + row * W + place)[:, None] + (example * (C * H * W) + top * W + left)[None, :]
    return tl.load(images + at, mask=inside, other=0.0)


@triton.jit(do_not_specialize=["batch"])
def _forward(
    images, weights, bias, out, winners, batch,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, OUTPUTS: tl.constexpr, KERNEL: tl.constexpr,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, POOL: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    BIAS: tl.constexpr, RELU: tl.constexpr, WINNERS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Compute the output, and for each of its values which position of its window won."""
    WINDOW: tl.constexpr = POOL * POOL
    WEIGHTS: tl.constexpr = C * KERNEL * KERNEL
    position = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    pooled, inner = position // WINDOW, position % WINDOW
    example = pooled // (OH * OW)
    top = (pooled // OW % OH * POOL + inner // POOL) * STRIDE - PADDING
    left = (pooled % OW * POOL + inner % POOL) * STRIDE - PADDING
    output = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, WEIGHTS, INNER):
        column = start + tl.arange(0, INNER)
        patch = _patches(images, column, example, top, left, example < batch, C, H, W, KERNEL, PADDING)
        inside = (output < OUTPUTS)[:, None] & (column < WEIGHTS)[None, :]
        weight = tl.load(weights + output[:, None] * WEIGHTS + column[None, :], mask=inside, other=0.0)
        sums = tl.dot(weight, patch, sums, input_precision=PRECISION)
    if BIAS:
        sums += tl.load(bias + output, mask=output < OUTPUTS, other=0.0)[:, None]
    KEPT: tl.constexpr = COLUMNS // WINDOW
    if POOL > 1:
        values = tl.reshape(sums, (ROWS, KEPT, WINDOW))
        best = tl.max(values, 2)
        total = tl.sum(values, 2)
        best = tl.where(total == total, best, total)  # not a number stays not a number
        order = tl.arange(0, WINDOW)[None, None, :]
        winner = tl.min(tl.where(values == best[:, :, None], order, WINDOW), 2)
    else:
        best = sums
        winner = tl.zeros((ROWS, KEPT), tl.int32)
    if RELU:
        winner = tl.where(best > 0, winner, WINDOW)
        best = tl.where(best <= 0, 0.0, best)
    pooled = tl.program_id(0) * KEPT + tl.arange(0, KEPT)
    inside = (output < OUTPUTS)[:, None] & (pooled < batch * (OH * OW))[None, :]
    at = (output * (OH * OW))[:, None] + (pooled // (OH * OW) * (OUTPUTS * OH * OW) + pooled % (OH * OW))[None, :]
    tl.store(out + at, best, mask=inside)
    if WINNERS:
        tl.store(winners + at, winner.to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=["batch"])
def _unpool(
    given, winners, gradient, batch,
    OUTPUTS: tl.constexpr, POOL: tl.constexpr, H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Give each position of the convolution's output its gradient: that of its window if it won, else 0."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place, row = at % W, at // W % H
    example, output = at // (H * W) % batch, at // (H * W) // batch
    inside = (output < OUTPUTS) & (row < OH * POOL) & (place < OW * POOL)
    source = ((example * OUTPUTS + output) * OH + row // POOL) * OW + place // POOL
    value = tl.load(given + source, mask=inside, other=0.0)
    winner = tl.load(winners + source, mask=inside, other=POOL * POOL)
    value = tl.where(winner == row % POOL * POOL + place % POOL, value, 0.0)
    tl.store(gradient + at, value, mask=output < OUTPUTS)


@triton.jit(do_not_specialize=["batch"])
def _unfold(
    images, patches, batch,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PADDING: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the pixel that each weight meets at each position."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    weight = tl.program_id(1)
    example = position // (OH * OW)
    row = position // OW % OH * STRIDE - PADDING + weight // KERNEL % KERNEL
    place = position % OW * STRIDE - PADDING + weight % KERNEL
    inside = (example < batch) & (row >= 0) & (row < H) & (place >= 0) & (place < W)
    source = ((example * C + weight // (KERNEL * KERNEL)) * H + row) * W + place
    pixel = tl.load(images + source, mask=inside, other=0.0)
    tl.store(patches + weight * (batch * (OH * OW)) + position, pixel, mask=example < batch)


@triton.jit(do_not_specialize=["batch"])
def _fold(
    patches, images, batch,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PADDING: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum what the weights give each pixel: the transpose of `_unfold`."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place, row, channel, example = at % W, at // W % H, at // (H * W) % C, at // (C * H * W)
    sums = tl.zeros((BLOCK,), tl.float32)
    for tap in tl.static_range(KERNEL * KERNEL):
        down, along = row + PADDING - tap // KERNEL, place + PADDING - tap % KERNEL
        inside = (example < batch) & (down >= 0) & (along >= 0) & (down < OH * STRIDE) & (along < OW * STRIDE)
        inside &= (down % STRIDE == 0) & (along % STRIDE == 0)
        position = (example * OH + down // STRIDE) * OW + along // STRIDE
        weight = channel * (KERNEL * KERNEL) + tap
        sums += tl.load(patches + weight * (batch * (OH * OW)) + position, mask=inside, other=0.0)
    tl.store(images + at, sums, mask=example < batch)


@triton.jit(do_not_specialize=["batch"])
def _bias_gradient(
    given, winners, gradient, batch, OUTPUTS: tl.constexpr, SIZE: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum the gradients of an output channel."""
    output = tl.program_id(0)
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, batch * SIZE, BLOCK):
        position = start + tl.arange(0, BLOCK)
        inside = position < batch * SIZE
        at = (position // SIZE * OUTPUTS + output) * SIZE + position % SIZE
        value = tl.load(given + at, mask=inside, other=0.0)
        winner = tl.load(winners + at, mask=inside, other=WINDOW)
        sums += tl.where(winner < WINDOW, value, 0.0)
    tl.store(gradient + output, tl.sum(sums, 0))


@triton.jit(do_not_specialize=["batch"])
def _linear_weight_gradient(
    inputs, given, winners, gradient, bias_gradient, batch, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
    BIAS: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Sum the gradients of the weights over the batch; the bias is one more weight, of a constant 1."""
    output = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, batch, INNER):
        example = start + tl.arange(0, INNER)
        inside = (output < OUTPUTS)[:, None] & (example < batch)[None, :]
        at = output[:, None] + (example * OUTPUTS)[None, :]
        part = tl.load(given + at, mask=inside, other=0.0)
        if RELU:
            part = tl.where(tl.load(winners + at, mask=inside, other=1) == 0, part, 0.0)
        inside = (column < INPUTS)[:, None] & (example < batch)[None, :]
        value = tl.load(inputs + column[:, None] + (example * INPUTS)[None, :], mask=inside, other=0.0)
        if BIAS:
            value = tl.where((column == INPUTS)[:, None], 1.0, value)
        sums = tl.dot(part, tl.trans(value), sums, input_precision=PRECISION)
    at = output[:, None] * INPUTS + column[None, :]
    tl.store(gradient + at, sums, mask=(output < OUTPUTS)[:, None] & (column < INPUTS)[None, :])
    if BIAS:
        own = (output < OUTPUTS)[:, None] & (column == INPUTS)[None, :]
        tl.store(bias_gradient + output[:, None] + 0 * column[None, :], sums, mask=own)


@triton.jit(do_not_specialize=["batch"])
def _linear_input_gradient(
    weights, given, winners, gradient, batch, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
    RELU: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of the inputs."""
    example = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, OUTPUTS, INNER):
        output = start + tl.arange(0, INNER)
        inside = (example < batch)[:, None] & (output < OUTPUTS)[None, :]
        at = (example * OUTPUTS)[:, None] + output[None, :]
        part = tl.load(given + at, mask=inside, other=0.0)
        if RELU:
            part = tl.where(tl.load(winners + at, mask=inside, other=1) == 0, part, 0.0)
        inside = (output < OUTPUTS)[:, None] & (column < INPUTS)[None, :]
        weight = tl.load(weights + output[:, None] * INPUTS + column[None, :], mask=inside, other=0.0)
        sums = tl.dot(part, weight, sums, input_precision=PRECISION)
    at = (example * INPUTS)[:, None] + column[None, :]
    tl.store(gradient + at, sums, mask=(example < batch)[:, None] & (column < INPUTS)[None, :])


@triton.jit(do_not_specialize=["count"])
def _cross_entropy(
    logits, labels, gradient, loss, count, CLASSES: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """Compute the mean cross-entropy of a batch and its gradient, in one program."""
    column = tl.arange(0, COLS)[None, :]
    sums = tl.zeros((ROWS,), tl.float32)
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        inside = (row < count) & (column < CLASSES)
        values = tl.load(logits + row * CLASSES + column, mask=inside, other=float("-inf"))
        values = tl.where((row < count) | (column > 0), values, 0.0)  # no row without a finite value
        values -= tl.max(values, 1)[:, None]
        powers = tl.exp(values)
        total = tl.sum(powers, 1)[:, None]
        label = tl.load(labels + row, mask=row < count, other=-1)
        right = column == label
        losses = tl.sum(tl.where(right, tl.log(total) - values, 0.0), 1)[:, None]
        # An unknown label must not pass as a loss of 0.
        known = ((label >= 0) & (label < CLASSES)) | (row >= count)
        sums += tl.sum(tl.where(known, losses, float("nan")), 1)
        tl.store(gradient + row * CLASSES + column, (powers / total - right) / count, mask=inside)
    tl.store(loss, tl.sum(sums, 0) / count)


def forward(
    images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, shape: Shape, relu: bool, winners: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Apply a layer.

    Args:
        images: [B, C, H, W] float32, contiguous; [B, D] for a linear layer.
        weight: of the layer, contiguous.
        bias: [C'] or None.
        shape: of the layer.
        relu: whether it ends with ReLU.
        winners: whether to return what the backward pass needs.

    Returns:
        The output, [B, C', H', W'] or [B, D'], and of each of its values the position in its window that won, uint8;
        the number of positions if the ReLU made it 0. None without ReLU and pooling, or if it is not needed.
    """
    batch = len(images)
    height, width = shape.out
    out = images.new_empty((batch, shape.outputs, height, width) if images.ndim == 4 else (batch, shape.outputs))
    won = torch.empty_like(out, dtype=torch.uint8) if winners and (relu or shape.pool > 1) else None
    rows = min(_at_least_16(shape.outputs), 32)
    # Measured on an H100; each has its bits, so they depend on nothing but the layer.
    tiles = (
        Tiles(rows, 16, 128 if shape.channels > 256 else 64) if images.ndim == 2 else Tiles(rows, 1024 // rows, 32, 2)
    )
    grid = (
        triton.cdiv(batch * height * width * shape.pool**2, tiles.columns), triton.cdiv(shape.outputs, tiles.rows)
    )  # fmt: skip
    _forward[grid](
        images, weight, bias, out, won, batch, *shape, height, width, bias is not None, relu, won is not None,
        _precision(), tiles.rows, tiles.columns, tiles.inner, num_warps=tiles.warps,
    )  # fmt: skip
    return out, won


def convolution_gradients(
    images: torch.Tensor, given: torch.Tensor, winners: torch.Tensor, weight: torch.Tensor, shape: Shape,
    of_images: bool, of_bias: bool,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Compute the gradients of a convolution with pooling.

    Args:
        images: of the forward pass.
        given: the gradient of its output, contiguous.
        winners: of the forward pass.
        weight: of the layer, contiguous.
        shape: of the layer.
        of_images: whether to compute the gradient of the images.
        of_bias: whether to compute that of the bias.

    Returns:
        The gradients of images, weight and bias; None for those not asked for.
    """
    batch = len(images)
    size, out = shape.unpooled, shape.out
    positions = batch * size[0] * size[1]
    window = shape.channels, shape.height, shape.width, shape.kernel, shape.stride, shape.padding, *size, _BLOCK
    dense = images.new_empty(shape.outputs, positions)
    _unpool[(triton.cdiv(dense.numel(), _BLOCK),)](
        given, winners, dense, batch, shape.outputs, shape.pool, *size, *out, _BLOCK
    )
    patches = images.new_empty(shape.weights, positions)
    _unfold[(triton.cdiv(positions, _BLOCK), shape.weights)](images, patches, batch, *window)
    weight_gradient = (dense @ patches.T).view(weight.shape)
    bias_gradient = None
    if of_bias:
        bias_gradient = images.new_empty(shape.outputs)
        _bias_gradient[(shape.outputs,)](
            given, winners, bias_gradient, batch, shape.outputs, out[0] * out[1], shape.pool**2, 1024
        )
    image_gradient = None
    if of_images:
        torch.mm(weight.view(shape.outputs, -1).T, dense, out=patches)
        image_gradient = torch.empty_like(images)
        _fold[(triton.cdiv(images.numel(), _BLOCK),)](patches, image_gradient, batch, *window)
    return image_gradient, weight_gradient, bias_gradient


def linear_gradients(
    inputs: torch.Tensor, given: torch.Tensor, winners: torch.Tensor | None, weight: torch.Tensor,
    of_inputs: bool, of_bias: bool,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Compute the gradients of a linear layer; arguments and results as of `convolution_gradients`."""
    batch, width = inputs.shape
    outputs = len(weight)
    weight_gradient = torch.empty_like(weight)
    bias_gradient = weight.new_empty(outputs) if of_bias else None
    common = width, outputs
    tiles = Tiles(min(_at_least_16(outputs), 32), 64, 64)
    grid = (triton.cdiv(outputs, tiles.rows), triton.cdiv(width + of_bias, tiles.columns))
    _linear_weight_gradient[grid](
        inputs, given, winners, weight_gradient, bias_gradient, batch, *common, of_bias, winners is not None,
        _precision(), tiles.rows, tiles.columns, tiles.inner, num_warps=tiles.warps,
    )  # fmt: skip
    input_gradient = None
    if of_inputs:
        input_gradient = torch.empty_like(inputs)
        tiles = Tiles(16, 32, 64)
        grid = (triton.cdiv(batch, tiles.rows), triton.cdiv(width, tiles.columns))
        _linear_input_gradient[grid](
            weight, given, winners, input_gradient, batch, *common, winners is not None,
            _precision(), tiles.rows, tiles.columns, tiles.inner, num_warps=tiles.warps,
        )  # fmt: skip
    return input_gradient, weight_gradient, bias_gradient


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient, [B, classes], and the mean cross-entropy of logits, [B, classes] float32, contiguous."""
    gradient, loss = torch.empty_like(logits), logits.new_empty(())
    count, classes = logits.shape
    _cross_entropy[(1,)](logits, labels, gradient, loss, count, classes, 64, triton.next_power_of_2(classes))
    return gradient, loss


def _at_least_16(size: int) -> int:
    """Return the next power of two, as large as the smallest part of a product."""
    return max(16, triton.next_power_of_2(size))


def _precision() -> str:
    """Return how to multiply: by tensor cores, with products of ten bits, or with three of them for a full one."""
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
