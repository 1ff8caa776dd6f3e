"""Checks of a model of a user's own: whatever would go wrong unnoticed is an error before the first round."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from fedmr_flwr.core.randomness import stream
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.models.base import drawing_from
from fedmr_flwr.models.packing import layout_of, tensors_of


def check(model: nn.Module, another: nn.Module, inputs: torch.Tensor) -> None:
    """Check that a model can be trained, sent and saved.

    Args:
        model: in evaluation mode.
        another: of the same class, made with other random numbers; it is changed.
        inputs: [B, ...], B > 1, examples.

    Raises:
        ConfigError: it cannot, or something that decides its output is not in its state_dict.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("has no parameters to train")
    try:
        layout_of(model)
    except TypeError as error:
        raise ConfigError(f"cannot be sent: {error}") from None
    _check_memory(model)
    for name, tensor in tensors_of(model).items():
        if not tensor.isfinite().all():
            raise ConfigError(f"begins with NaN or infinite values in '{name}'")
    another.load_state_dict(model.state_dict())
    before = inputs._version  # counts changes in place
    found, expected, again = (_outputs(each, inputs) for each in (another, model, model))
    if inputs._version != before:
        raise ConfigError("changes its examples in place, so that a second pass gets others; let it copy them first")
    if not torch.equal(found.nan_to_num(), expected.nan_to_num()):
        raise ConfigError(
            "answers otherwise than a new model with its state_dict, which lacks something that its constructor has "
            "drawn or computed; register it as a buffer"
        )
    if not torch.equal(again.nan_to_num(), expected.nan_to_num()):
        raise ConfigError(
            "answers the same examples otherwise when it is asked again: it keeps something that its state_dict lacks"
        )
    if (expected >= 0).all() and torch.allclose(expected.sum(1), torch.ones_like(expected[:, 0])):
        raise ConfigError("returns probabilities, expected logits: leave out its softmax, which the loss applies")
    _check_training(another, inputs)


@contextmanager
def only_torch_draws() -> Iterator[None]:
    """Check that nothing inside the block draws from the global generators of Python or NumPy.

    Raises:
        ConfigError: something does; the engines cannot make such draws repeat.
    """
    before = _other_generators()
    yield
    if _other_generators() != before:
        raise ConfigError(
            "draws from the global generator of Python's random or of NumPy, so that no run would repeat; draw with "
            "PyTorch, such as torch.rand"
        )


def _other_generators() -> tuple[object, ...]:
    # The old interface of NumPy is the one that has a global generator.
    _, words, position, *_ = np.random.get_state()  # noqa: NPY002
    return random.getstate(), bytes(np.asarray(words)), position


def _check_memory(model: nn.Module) -> None:
    """Refuse tensors that overlap in memory: a parameter that is tied in this way is untied on another device."""
    end, last = 0, ""
    spans = []
    for name, tensor in tensors_of(model).items():
        if tensor.numel():
            length = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
            spans.append((tensor.data_ptr(), length * tensor.element_size(), name))
            if length < tensor.numel():
                raise ConfigError(f"'{name}' has several values in the same memory; make it contiguous")
    for start, size, name in sorted(spans):
        if start < end:
            raise ConfigError(
                f"'{last}' and '{name}' share memory but are two tensors; to tie them, assign the parameter itself"
            )
        end, last = start + size, name


def _outputs(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    # Equal draws for both models, if they draw in evaluation.
    with drawing_from(stream(0, "check")), torch.no_grad():
        outputs: torch.Tensor = model.eval()(inputs)
    return outputs


def _check_training(model: nn.Module, inputs: torch.Tensor) -> None:
    """Run a model once as in training, where it may use other code."""
    kept = set(model.state_dict())
    lost = {name: buffer.clone() for name, buffer in model.named_buffers() if name not in kept}
    with drawing_from(stream(0, "check")):
        logits = model.train()(inputs)
    if not logits.requires_grad:
        raise ConfigError("returns logits without gradients in training; leave out no_grad, detach and the like")
    logits.sum().backward()
    if sparse := [name for name, own in model.named_parameters() if own.grad is not None and own.grad.is_sparse]:
        raise ConfigError(
            f"has sparse gradients of '{sparse[0]}', which no optimiser here takes; leave out sparse=True"
        )
    for name, buffer in model.named_buffers():
        if name in lost and not torch.equal(buffer, lost[name]):
            raise ConfigError(
                f"training changes the buffer '{name}', which its state_dict does not contain; register it with "
                "persistent=True"
            )
