"""Layers with their activation: PyTorch's operations, or on a GPU kernels of our own, which are fewer."""

from contextlib import AbstractContextManager
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fedmr_flwr.errors import ConfigError

if TYPE_CHECKING:  # a machine without a GPU need not have Triton
    from fedmr_flwr.models.kernels import Shape


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# The attribute of a layer of several lanes that says how many examples each has.
_COUNTS = "lane_counts"
# Of a cross-entropy by one program; more would not fit into its registers.
MOST_CLASSES = 1024


def stacked(model: nn.Module, counts: torch.Tensor) -> nn.Module:
    """Return a model of several lanes, each of which has the weights of the given one and its own part of the batch.

    The weights of a layer are [K, ...]; `apply` computes all lanes together, but not those without an example.

    Args:
        model: all of its layers with weights are given to `apply`.
        counts: [K] int32, how many examples each lane has in its part, see `kernels.forward`; on the model's device.

    Raises:
        ConfigError: it has other weights, buffers, tied weights, or BatchNorm.
    """
    copy = deepcopy(model)
    seen: set[int] = set()
    for path, module in copy.named_modules():
        own = {id(tensor) for tensor in (*module.parameters(False), *module.buffers(False))}
        single = isinstance(module, nn.Linear | nn.Conv2d) and not [*module.buffers(False)]
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or (own and not single) or own & seen:
            what = f"{path or 'the model'}, a {type(module).__name__},"
            raise ConfigError(
                f"{type(model).__name__} is declared stackable, but {what} cannot be: only linear layers and "
                "convolutions can have weights for each lane, only if they share them with no other layer, and no "
                "example may depend on another"
            )
        seen |= own
    for module in copy.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            for name, parameter in list(module.named_parameters()):
                copies = parameter.detach().expand(len(counts), *parameter.shape).contiguous()
                setattr(module, name, nn.Parameter(copies, parameter.requires_grad))
            setattr(module, _COUNTS, counts)
    return copy


def apply(layer: nn.Module, inputs: torch.Tensor, *, pool: int = 1, relu: bool = False) -> torch.Tensor:
    """Apply a layer, then max pooling, then ReLU.

    Args:
        layer: a convolution, a linear layer, or any other one, which PyTorch computes.
        inputs: [B, C, H, W] or [B, D].
        pool: side and stride of the pooling window; 1 for none.
        relu: whether to end with ReLU.

    Returns:
        [B, C', H', W'] or [B, D'].
    """
    counts: torch.Tensor | None = getattr(layer, _COUNTS, None)
    if shape := _fused_shape(layer, inputs, pool, 1 if counts is None else len(counts)):
        return _Fused.apply(inputs, layer.weight, layer.bias, shape, relu, counts)  # type: ignore[no-any-return]
    if counts is not None:
        raise ConfigError(
            f"{layer} cannot be stacked with pool={pool} and {len(inputs) // len(counts)} examples: it must be "
            "linear, or a convolution with pool=2 or 4, without hooks, groups and dilation, and not too large"
        )
    outputs = layer(inputs)
    if pool > 1:
        # Pooling before the ReLU gives the same values with a quarter of the work.
        outputs = functional.max_pool2d(outputs, pool)
    return torch.relu(outputs) if relu else outputs


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0, counts: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean cross-entropy of a batch, whose own gradient must be 1: it may be added to, but not scaled.

    Args:
        logits: [B, classes].
        labels: [B] int64.
        smoothing: the share of each label that is spread over all classes.
        counts: of the lanes of a `stacked` model, whose means are [K]; then there is no smoothing.
    """
    few = not smoothing and logits.ndim == 2 and logits.shape[1] <= MOST_CLASSES
    if few and logits.dtype == torch.float32 and missing(logits.device) is None:
        return _CrossEntropy.apply(logits, labels, counts)  # type: ignore[no-any-return]
    if counts is not None:
        raise ConfigError(
            f"a stackable model returns {list(logits.shape)}, of which no lane has a loss of its own: expected "
            f"[examples, classes] with up to {MOST_CLASSES} classes"
        )
    return functional.cross_entropy(logits, labels, label_smoothing=smoothing)


@cache
def missing(device: torch.device) -> str | None:
    """Return why kernels of our own do not run on a device; None if they do."""
    if device.type != "cuda":
        return "it is not a GPU"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU has no tensor cores for float32"
    try:
        from fedmr_flwr.models import kernels

        with torch.cuda.device(device):
            kernels.cross_entropy(torch.zeros(1, 2, device=device), torch.zeros(1, dtype=torch.long, device=device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton's own errors, those of the compiler that it calls, and of the system
        return f"Triton does not work: {type(error).__name__}: {error}".splitlines()[0]
    return None


def _fused_shape(layer: nn.Module, inputs: torch.Tensor, pool: int, lanes: int) -> "Shape | None":
    """Return the sizes of a layer that kernels of our own compute; None for any other one.

    These are linear layers, and convolutions with pooling, of PyTorch's own classes, without hooks. Inputs that do
    not fit the layer are left to PyTorch, whose error names what is wrong.
    """
    if type(layer) not in (nn.Linear, nn.Conv2d) or any(getattr(layer, name) for name in _HOOKS):
        return None
    if not inputs.dtype == layer.weight.dtype == torch.float32 or torch.is_autocast_enabled(inputs.device.type):
        return None
    if missing(inputs.device):
        return None
    from fedmr_flwr.models.kernels import Shape

    # Within a lane the kernels count in 32 bits; and the parts of a product are not more than a grid has programs.
    batch = len(inputs) // lanes
    if isinstance(layer, nn.Linear):
        ins, outs = layer.in_features, layer.out_features
        fits = pool == 1 and inputs.ndim == 2 and inputs.shape[1] == ins and max(ins, outs) < 2**20
        return Shape(ins, 1, 1, outs) if fits and max(batch * ins, batch * outs, ins * outs) < 2**31 else None
    assert isinstance(layer, nn.Conv2d)
    sides = layer.kernel_size, layer.stride, layer.padding
    plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    if not plain or pool not in (2, 4) or any(isinstance(pair, str) or pair[0] != pair[1] for pair in sides):
        return None
    if inputs.ndim != 4 or inputs.shape[1] != layer.in_channels:
        return None
    _, channels, height, width = inputs.shape
    kernel, stride, padding = (int(pair[0]) for pair in sides)
    shape = Shape(channels, height, width, layer.out_channels, kernel, stride, padding, pool)
    area = shape.unpooled[0] * shape.unpooled[1]
    largest = max(batch * channels * height * width, batch * shape.outputs * area, shape.outputs * shape.weights)
    return shape if min(shape.out) > 0 and largest < 2**31 and batch < 2**16 else None


def _on(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Make a tensor's GPU the current one inside the block: Triton launches there, whatever the tensors'."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]


class _Fused(torch.autograd.Function):
    """A layer by kernels of our own."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        shape: "Shape",
        relu: bool,
        counts: torch.Tensor | None,
    ) -> torch.Tensor:
        from fedmr_flwr.models import kernels

        # A model that trains in bf16 is scored in float32, and has its weights in another memory order.
        inputs, weight = inputs.contiguous(), weight.contiguous()
        with _on(inputs):
            out, winners = kernels.forward(inputs, weight, bias, shape, relu, any(ctx.needs_input_grad), counts)
        ctx.shape, ctx.counts = shape, counts
        ctx.save_for_backward(inputs, weight, winners)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from fedmr_flwr.models import kernels

        inputs, weight, winners = ctx.saved_tensors
        of_inputs, _, of_bias = ctx.needs_input_grad[:3]
        given = given.contiguous()
        with _on(inputs):
            if inputs.ndim == 2:
                found = kernels.linear_gradients(inputs, given, winners, weight, of_inputs, of_bias, ctx.counts)
            else:
                found = kernels.convolution_gradients(
                    inputs, given, winners, weight, ctx.shape, of_inputs, of_bias, ctx.counts
                )
        return *found, None, None, None


class _CrossEntropy(torch.autograd.Function):
    """The mean cross-entropy, whose gradient is computed with it."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
        from fedmr_flwr.models import kernels

        with _on(logits):
            gradient, loss = kernels.cross_entropy(logits.contiguous(), labels.contiguous(), counts)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient, None, None
