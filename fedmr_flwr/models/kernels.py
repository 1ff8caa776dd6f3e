"""Triton kernels for small layers: what PyTorch does in five or ten kernels, in one or two.

A step of a small model is a chain of kernels that take one to four microseconds each, whatever they compute, so the
number of kernels decides how long it takes. A convolution with its bias, max pooling and ReLU is one kernel here, and
three to five for its backward pass; a linear layer with its ReLU is one kernel, and two for its backward pass.

A kernel can serve several lanes, each with weights of its own and its own part of the batch. A lane's part is
computed as it would be alone: sums have a fixed order, so that results repeat bit for bit.
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
    """How a product is divided: [rows, columns] of a program's part of the result, and how much it sums at a time.

    Attributes:
        warps: of a program.
        stages: how many parts of the sum are loaded at a time. Where single values are gathered, one: with more the
            gradients of a convolution's weights take four to five times as long.
    """

    rows: int
    columns: int
    inner: int
    warps: int = 4
    stages: int = 3


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


@triton.jit
def _examples(counts, batch, lane):
    """Return how many examples a lane has."""
    count = batch
    if counts is not None:
        count = tl.load(counts + lane)
    return count


@triton.jit(do_not_specialize=["batch"])
def _forward(
    images, weights, bias, out, winners, counts, batch,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, OUTPUTS: tl.constexpr, KERNEL: tl.constexpr,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, POOL: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    RELU: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Compute the output, and for each of its values which position of its window won."""
    WINDOW: tl.constexpr = POOL * POOL
    WEIGHTS: tl.constexpr = C * KERNEL * KERNEL
    lane = tl.program_id(2).to(tl.int64)  # all lanes together may be larger than 32 bits can count
    count = _examples(counts, batch, lane)
    if tl.program_id(0) * COLUMNS >= count * (OH * OW * WINDOW):
        return
    images += lane * batch * (C * H * W)
    weights += lane * (OUTPUTS * WEIGHTS)
    out += lane * batch * (OUTPUTS * OH * OW)
    position = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    pooled, inner = position // WINDOW, position % WINDOW
    example = pooled // (OH * OW)
    top = (pooled // OW % OH * POOL + inner // POOL) * STRIDE - PADDING
    left = (pooled % OW * POOL + inner % POOL) * STRIDE - PADDING
    output = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, WEIGHTS, INNER):
        column = start + tl.arange(0, INNER)
        patch = _patches(images, column, example, top, left, example < count, C, H, W, KERNEL, PADDING)
        inside = (output < OUTPUTS)[:, None] & (column < WEIGHTS)[None, :]
        weight = tl.load(weights + output[:, None] * WEIGHTS + column[None, :], mask=inside, other=0.0)
        sums = tl.dot(weight, patch, sums, input_precision=PRECISION)
    if bias is not None:
        sums += tl.load(bias + lane * OUTPUTS + output, mask=output < OUTPUTS, other=0.0)[:, None]
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
    inside = (output < OUTPUTS)[:, None] & (pooled < count * (OH * OW))[None, :]
    at = (output * (OH * OW))[:, None] + (pooled // (OH * OW) * (OUTPUTS * OH * OW) + pooled % (OH * OW))[None, :]
    tl.store(out + at, best, mask=inside)
    if winners is not None:
        tl.store(winners + lane * batch * (OUTPUTS * OH * OW) + at, winner.to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=["batch"])
def _unpool(
    given, winners, gradient, counts, batch,
    OUTPUTS: tl.constexpr, POOL: tl.constexpr, H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Give each position of the convolution's output its gradient: that of its window if it won, else 0."""
    lane = tl.program_id(1).to(tl.int64)
    count = _examples(counts, batch, lane)
    given += lane * batch * (OUTPUTS * OH * OW)
    winners += lane * batch * (OUTPUTS * OH * OW)
    gradient += lane * batch * (OUTPUTS * H * W)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place, row, plane = at % W, at // W % H, at // (H * W)
    inside = (plane < count * OUTPUTS) & (row < OH * POOL) & (place < OW * POOL)
    source = (plane * OH + row // POOL) * OW + place // POOL
    value = tl.load(given + source, mask=inside, other=0.0)
    winner = tl.load(winners + source, mask=inside, other=POOL * POOL)
    value = tl.where(winner == row % POOL * POOL + place % POOL, value, 0.0)
    tl.store(gradient + at, value, mask=plane < count * OUTPUTS)


@triton.jit(do_not_specialize=["batch"])
def _convolution_weight_gradient(
    images, given, partial, counts, batch,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, OUTPUTS: tl.constexpr, KERNEL: tl.constexpr,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, UH: tl.constexpr, UW: tl.constexpr,
    PRECISION: tl.constexpr, IMAGES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Sum the gradients of the weights over some images; the bias is one more weight, of a constant 1."""
    WEIGHTS: tl.constexpr = C * KERNEL * KERNEL
    AREA: tl.constexpr = UH * UW
    STEPS: tl.constexpr = (AREA + INNER - 1) // INNER
    TILES: tl.constexpr = (OUTPUTS + ROWS - 1) // ROWS
    group, lane = tl.program_id(1), tl.program_id(2).to(tl.int64)
    left = _examples(counts, batch, lane) - group * IMAGES
    images += (lane * batch + group * IMAGES) * (C * H * W)
    given += (lane * batch + group * IMAGES) * (OUTPUTS * AREA)
    output = tl.program_id(0) % TILES * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) // TILES * COLUMNS + tl.arange(0, COLUMNS)
    channel, down, along = column // (KERNEL * KERNEL), column // KERNEL % KERNEL - PADDING, column % KERNEL - PADDING
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(tl.minimum(left, IMAGES) * STEPS):
        example = step // STEPS
        position = step % STEPS * INNER + tl.arange(0, INNER)
        row, place = position // UW * STRIDE, position % UW * STRIDE
        at = example * (OUTPUTS * AREA) + (output * AREA)[:, None] + position[None, :]
        value = tl.load(given + at, mask=(output < OUTPUTS)[:, None] & (position < AREA)[None, :], other=0.0)
        inside = (position < AREA)[:, None] & (column < WEIGHTS)[None, :]
        if PADDING:
            y, x = row[:, None] + down[None, :], place[:, None] + along[None, :]
            inside &= (y >= 0) & (y < H) & (x >= 0) & (x < W)
        at = (row * W + place)[:, None] + (channel * (H * W) + down * W + along)[None, :]
        pixel = tl.load(images + example * (C * H * W) + at, mask=inside, other=0.0)
        pixel = tl.where((column == WEIGHTS)[None, :], 1.0, pixel)
        sums = tl.dot(value, pixel, sums, input_precision=PRECISION)
    partial += (lane * tl.num_programs(1) + group) * (OUTPUTS * (WEIGHTS + 1))
    at = output[:, None] * (WEIGHTS + 1) + column[None, :]
    tl.store(partial + at, sums, mask=(output < OUTPUTS)[:, None] & (column <= WEIGHTS)[None, :])


@triton.jit(do_not_specialize=["groups"])
def _add_partial(
    partial, gradient, bias_gradient, groups, OUTPUTS: tl.constexpr, WEIGHTS: tl.constexpr, BLOCK: tl.constexpr
):
    """Sum the partial gradients of groups of images, in their order."""
    SIZE: tl.constexpr = OUTPUTS * (WEIGHTS + 1)
    lane = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < SIZE
    sums = tl.zeros((BLOCK,), tl.float32)
    for group in range(groups):
        sums += tl.load(partial + (lane * groups + group) * SIZE + at, mask=inside, other=0.0)
    output, column = at // (WEIGHTS + 1), at % (WEIGHTS + 1)
    gradient += lane * (OUTPUTS * WEIGHTS)
    tl.store(gradient + output * WEIGHTS + column, sums, mask=inside & (column < WEIGHTS))
    if bias_gradient is not None:
        tl.store(bias_gradient + lane * OUTPUTS + output, sums, mask=inside & (column == WEIGHTS))


@triton.jit(do_not_specialize=["batch"])
def _convolution_input_gradient(
    weights, given, gradient, counts, batch,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, OUTPUTS: tl.constexpr, KERNEL: tl.constexpr,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, UH: tl.constexpr, UW: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of the images; the weights are [kernel, kernel, C', C]."""
    TAPS: tl.constexpr = KERNEL * KERNEL
    PARTS: tl.constexpr = (OUTPUTS + INNER - 1) // INNER
    lane = tl.program_id(2).to(tl.int64)
    count = _examples(counts, batch, lane)
    if tl.program_id(0) * COLUMNS >= count * (H * W):
        return
    gradient += lane * batch * (C * H * W)
    weights += lane * (OUTPUTS * C * TAPS)
    given += lane * batch * (OUTPUTS * UH * UW)
    position = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    example, row, place = position // (H * W), position // W % H, position % W
    channel = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(TAPS * PARTS):
        tap = step // PARTS
        output = step % PARTS * INNER + tl.arange(0, INNER)
        at = (tap * OUTPUTS + output)[None, :] * C + channel[:, None]
        weight = tl.load(weights + at, mask=(channel < C)[:, None] & (output < OUTPUTS)[None, :], other=0.0)
        down, along = row + PADDING - tap // KERNEL, place + PADDING - tap % KERNEL
        inside = (example < count) & (down >= 0) & (along >= 0) & (down < UH * STRIDE) & (along < UW * STRIDE)
        if STRIDE > 1:
            inside &= (down % STRIDE == 0) & (along % STRIDE == 0)
        at = (example * (OUTPUTS * UH * UW) + down // STRIDE * UW + along // STRIDE)[None, :]
        at += (output * (UH * UW))[:, None]
        value = tl.load(given + at, mask=inside[None, :] & (output < OUTPUTS)[:, None], other=0.0)
        sums = tl.dot(weight, value, sums, input_precision=PRECISION)
    at = (example * (C * H * W) + position % (H * W))[None, :] + (channel * (H * W))[:, None]
    tl.store(gradient + at, sums, mask=(channel < C)[:, None] & (example < count)[None, :])


@triton.jit(do_not_specialize=["batch"])
def _linear_weight_gradient(
    inputs, given, winners, gradient, bias_gradient, counts, batch, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Sum the gradients of the weights over the batch; the bias is one more weight, of a constant 1."""
    lane = tl.program_id(2).to(tl.int64)
    count = _examples(counts, batch, lane)
    inputs += lane * batch * INPUTS
    given += lane * batch * OUTPUTS
    gradient += lane * (OUTPUTS * INPUTS)
    output = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, count, INNER):
        example = start + tl.arange(0, INNER)
        inside = (output < OUTPUTS)[:, None] & (example < count)[None, :]
        at = output[:, None] + (example * OUTPUTS)[None, :]
        part = tl.load(given + at, mask=inside, other=0.0)
        if winners is not None:
            winner = tl.load(winners + lane * batch * OUTPUTS + at, mask=inside, other=1)
            part = tl.where(winner == 0, part, 0.0)
        inside = (column < INPUTS)[:, None] & (example < count)[None, :]
        value = tl.load(inputs + column[:, None] + (example * INPUTS)[None, :], mask=inside, other=0.0)
        if bias_gradient is not None:
            value = tl.where((column == INPUTS)[:, None], 1.0, value)
        sums = tl.dot(part, tl.trans(value), sums, input_precision=PRECISION)
    at = output[:, None] * INPUTS + column[None, :]
    tl.store(gradient + at, sums, mask=(output < OUTPUTS)[:, None] & (column < INPUTS)[None, :])
    if bias_gradient is not None:
        own = (output < OUTPUTS)[:, None] & (column == INPUTS)[None, :]
        tl.store(bias_gradient + (lane * OUTPUTS + output)[:, None] + 0 * column[None, :], sums, mask=own)


@triton.jit(do_not_specialize=["batch"])
def _linear_input_gradient(
    weights, given, winners, gradient, counts, batch, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of the inputs."""
    lane = tl.program_id(2).to(tl.int64)
    count = _examples(counts, batch, lane)
    if tl.program_id(0) * ROWS >= count:
        return
    given += lane * batch * OUTPUTS
    gradient += lane * batch * INPUTS
    weights += lane * (OUTPUTS * INPUTS)
    example = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, OUTPUTS, INNER):
        output = start + tl.arange(0, INNER)
        inside = (example < count)[:, None] & (output < OUTPUTS)[None, :]
        at = (example * OUTPUTS)[:, None] + output[None, :]
        part = tl.load(given + at, mask=inside, other=0.0)
        if winners is not None:
            winner = tl.load(winners + lane * batch * OUTPUTS + at, mask=inside, other=1)
            part = tl.where(winner == 0, part, 0.0)
        inside = (output < OUTPUTS)[:, None] & (column < INPUTS)[None, :]
        weight = tl.load(weights + output[:, None] * INPUTS + column[None, :], mask=inside, other=0.0)
        sums = tl.dot(part, weight, sums, input_precision=PRECISION)
    at = (example * INPUTS)[:, None] + column[None, :]
    tl.store(gradient + at, sums, mask=(example < count)[:, None] & (column < INPUTS)[None, :])


@triton.jit(do_not_specialize=["batch"])
def _cross_entropy(
    logits, labels, gradient, loss, counts, batch, CLASSES: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """Compute the mean cross-entropy of a batch and its gradient, in one program."""
    lane = tl.program_id(0).to(tl.int64)
    count = _examples(counts, batch, lane)
    logits += lane * batch * CLASSES
    gradient += lane * batch * CLASSES
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
        label = tl.load(labels + lane * batch + row, mask=row < count, other=-1)
        right = column == label
        losses = tl.sum(tl.where(right, tl.log(total) - values, 0.0), 1)[:, None]
        # An unknown label must not pass as a loss of 0.
        known = ((label >= 0) & (label < CLASSES)) | (row >= count)
        sums += tl.sum(tl.where(known, losses, float("nan")), 1)
        tl.store(gradient + row * CLASSES + column, (powers / total - right) / count, mask=inside)
    tl.store(loss + lane, tl.sum(sums, 0) / tl.maximum(count, 1))


def forward(
    images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, shape: Shape, relu: bool, winners: bool,
    counts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Apply a layer.

    Args:
        images: [B, C, H, W] float32, contiguous; [B, D] for a linear layer. With counts, K lanes of B / K examples.
        weight: of the layer, contiguous; with counts, [K, ...].
        bias: [C'] or None; with counts, [K, C'].
        shape: of the layer.
        relu: whether it ends with ReLU.
        winners: whether to return what the backward pass needs.
        counts: [K] int32, how many of its examples each lane has, at the beginning of its part; the results of the
            others are undefined. None: a single lane has all of them.

    Returns:
        The output, [B, C', H', W'] or [B, D'], and of each of its values the position in its window that won, uint8;
        the number of positions if the ReLU made it 0. None without ReLU and pooling, or if it is not needed.
    """
    lanes, batch = _lanes(images, counts)
    height, width = shape.out
    size = shape.outputs, height, width
    out = images.new_empty((len(images), *(size if images.ndim == 4 else size[:1])))
    won = torch.empty_like(out, dtype=torch.uint8) if winners and (relu or shape.pool > 1) else None
    rows = min(_at_least_16(shape.outputs), 32)
    # Measured on an H100; each has its bits, so they depend on nothing but the layer.
    tiles = Tiles(rows, 16, 64) if images.ndim == 2 else Tiles(rows, 2 * rows, 32, warps=rows // 16, stages=1)
    grid = (
        triton.cdiv(batch * height * width * shape.pool**2, tiles.columns), triton.cdiv(shape.outputs, tiles.rows),
        lanes,
    )  # fmt: skip
    _forward[grid](
        images, weight, bias, out, won, counts, batch, *shape, height, width, relu, _precision(),
        tiles.rows, tiles.columns, tiles.inner, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out, won


def convolution_gradients(
    images: torch.Tensor, given: torch.Tensor, winners: torch.Tensor, weight: torch.Tensor, shape: Shape,
    of_images: bool, of_bias: bool, counts: torch.Tensor | None = None,
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
        counts: of the forward pass.

    Returns:
        The gradients of images, weight and bias; None for those not asked for.
    """
    lanes, batch = _lanes(images, counts)
    weight_gradient = torch.empty_like(weight)
    bias_gradient = weight.new_empty(weight.shape[:-3]) if of_bias else None
    out, (height, width), precision = shape.out, shape.unpooled, _precision()
    dense = images.new_empty(len(images), shape.outputs, height, width)
    _unpool[(triton.cdiv(batch * shape.outputs * height * width, _BLOCK), lanes)](
        given, winners, dense, counts, batch, shape.outputs, shape.pool, height, width, *out, _BLOCK
    )
    # Summed over a few images at a time, so that enough programs run; how many does not depend on the batch, so that
    # a smaller one has the same bits in a lane.
    images_each = max(1, 320 // (height * width))
    groups = triton.cdiv(batch, images_each)
    columns = min(_at_least_16(shape.weights + 1), 64)
    tiles = Tiles(min(_at_least_16(shape.outputs), 32), columns, 2048 // columns, warps=2, stages=1)
    pieces = triton.cdiv(shape.outputs, tiles.rows) * triton.cdiv(shape.weights + 1, tiles.columns)
    size = shape.outputs * (shape.weights + 1)
    partial = images.new_empty(lanes * groups * size)
    _convolution_weight_gradient[(pieces, groups, lanes)](
        images, dense, partial, counts, batch, *shape[:-1], height, width, precision, images_each,
        tiles.rows, tiles.columns, tiles.inner, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    _add_partial[(triton.cdiv(size, 128), lanes)](
        partial, weight_gradient, bias_gradient, groups, shape.outputs, shape.weights, 128
    )
    if not of_images:
        return None, weight_gradient, bias_gradient
    image_gradient = torch.empty_like(images)
    # Otherwise each weight of a product would be in another cache line.
    ordered = weight.view(lanes, shape.outputs, shape.channels, -1).permute(0, 3, 1, 2).contiguous()
    tiles = Tiles(min(_at_least_16(shape.channels), 32), 64, min(_at_least_16(shape.outputs), 32), stages=1)
    grid = (
        triton.cdiv(batch * shape.height * shape.width, tiles.columns), triton.cdiv(shape.channels, tiles.rows), lanes
    )  # fmt: skip
    _convolution_input_gradient[grid](
        ordered, dense, image_gradient, counts, batch, *shape[:-1], height, width, precision,
        tiles.rows, tiles.columns, tiles.inner, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return image_gradient, weight_gradient, bias_gradient


def linear_gradients(
    inputs: torch.Tensor, given: torch.Tensor, winners: torch.Tensor | None, weight: torch.Tensor,
    of_inputs: bool, of_bias: bool, counts: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Compute the gradients of a linear layer; arguments and results as of `convolution_gradients`."""
    lanes, batch = _lanes(inputs, counts)
    outputs, width = weight.shape[-2:]
    weight_gradient = torch.empty_like(weight)
    bias_gradient = weight.new_empty(weight.shape[:-1]) if of_bias else None
    tiles = Tiles(min(_at_least_16(outputs), 64), 64, 64, stages=1)
    grid = (triton.cdiv(outputs, tiles.rows), triton.cdiv(width + of_bias, tiles.columns), lanes)
    _linear_weight_gradient[grid](
        inputs, given, winners, weight_gradient, bias_gradient, counts, batch, width, outputs, _precision(),
        tiles.rows, tiles.columns, tiles.inner, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    input_gradient = None
    if of_inputs:
        input_gradient = torch.empty_like(inputs)
        tiles = Tiles(16, 64, 64)
        grid = (triton.cdiv(batch, tiles.rows), triton.cdiv(width, tiles.columns), lanes)
        _linear_input_gradient[grid](
            weight, given, winners, input_gradient, counts, batch, width, outputs, _precision(),
            tiles.rows, tiles.columns, tiles.inner, num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return input_gradient, weight_gradient, bias_gradient


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute a mean cross-entropy and its gradient.

    Args:
        logits: [B, classes] float32, contiguous.
        labels: [B] int64.
        counts: as of `forward`.

    Returns:
        The gradient, [B, classes], and the mean, []; with counts, [K].
    """
    lanes, batch = _lanes(logits, counts)
    gradient, loss = torch.empty_like(logits), logits.new_empty(() if counts is None else (lanes,))
    classes = logits.shape[1]
    _cross_entropy[(lanes,)](
        logits, labels, gradient, loss, counts, batch, classes, 64, triton.next_power_of_2(classes)
    )
    return gradient, loss


def _lanes(inputs: torch.Tensor, counts: torch.Tensor | None) -> tuple[int, int]:
    """Return the number of lanes, and of the examples that each has room for."""
    lanes = 1 if counts is None else len(counts)
    return lanes, len(inputs) // lanes


def _at_least_16(size: int) -> int:
    """Return the next power of two, as large as the smallest part of a product."""
    return max(16, triton.next_power_of_2(size))


def _precision() -> str:
    """Return how to multiply: by tensor cores, with products of ten bits, or with three of them for a full one."""
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
