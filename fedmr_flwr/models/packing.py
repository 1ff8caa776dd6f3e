"""Conversion of a network to flat vectors and back."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.models.parts import last_layer


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a model's state_dict, each once: a tied one has the first of its names.

    Raises:
        TypeError: the state_dict contains something else than tensors.
    """
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    # Not the usual copies, which are new objects even for a tied tensor.
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"'{name}' of its state_dict is of type {type(tensor).__name__}, not a tensor")
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach()
    return found


def layout_of(model: nn.Module) -> Layout:
    """Return the layout of a model's packed form.

    Raises:
        TypeError: a value of its state_dict is not a tensor, or of a type that cannot be averaged without loss.
    """
    buffers = {name for name, _ in model.named_buffers()}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    # A module of another project may have no `blocks`, or blocks of its own.
    blocks = getattr(model, "blocks", ())
    declared = isinstance(blocks, tuple) and all(isinstance(block, str) for block in blocks)
    return Layout.of(_on_host(model), buffers, blocks if declared else (), last_layer(model), frozen)


def pack(model: nn.Module, layout: Layout) -> Packed:
    """Copy a model's state_dict into two flat vectors on the host."""
    return layout.pack(_on_host(model))


def _on_host(model: nn.Module) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy(force=True) for name, tensor in tensors_of(model).items()}


def pack_on_device(tensors: list[torch.Tensor], layout: Layout) -> Packed:
    """Copy tensors, in the order of `tensors_of`, into two flat vectors; the floats stay on the device."""
    floats: list[torch.Tensor] = []
    ints: list[torch.Tensor] = []
    for tensor, entry in zip(tensors, layout.entries, strict=True):
        kind = torch.int64 if entry.integer else tensor.dtype
        (ints if entry.integer else floats).append(tensor.detach().reshape(-1).to(kind))
    # The integers go to the host: they are few, and all arithmetic on them is NumPy's.
    counters = torch.cat(ints).numpy(force=True) if ints else np.empty(0, np.int64)
    return Packed(torch.cat(floats), counters)  # type: ignore[arg-type]


def unpack(packed: Packed, layout: Layout, model: nn.Module) -> None:
    """Overwrite a model's state_dict, buffers included, with two flat vectors.

    Args:
        packed: [P] floats and [Q] ints; may be read-only, or tensors.
        layout: of the model.
        model: on any device.
    """
    overwrite(list(tensors_of(model).values()), packed, layout)


def arrays_of(packed: Packed, layout: Layout, model: nn.Module) -> dict[str, NDArray[Any]]:
    """Return a model's state_dict, as its own class loads it: a tied tensor has all of its names.

    Args:
        packed: the model.
        layout: of the model.
        model: a network of its class, which is overwritten.
    """
    unpack(packed, layout, model)
    return {name: np.ascontiguousarray(tensor.numpy(force=True)) for name, tensor in model.state_dict().items()}


@torch.no_grad()
def overwrite(tensors: list[torch.Tensor], packed: Packed, layout: Layout) -> None:
    """Overwrite a model's tensors, in the order of `tensors_of`, with two flat vectors, as `unpack`."""
    # All tensors in a few kernels, not one for each; such a kernel needs tensors of one type and one memory order.
    alike: dict[tuple[torch.dtype, bool], tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for tensor, values in zip(tensors, views(packed, layout, tensors[0].device), strict=True):
        own, given = alike.setdefault((tensor.dtype, tensor.stride() == values.stride()), ([], []))
        own.append(tensor)
        given.append(values)
    for own, given in alike.values():
        torch._foreach_copy_(own, given)


def views(packed: Packed, layout: Layout, device: torch.device) -> list[torch.Tensor]:
    """Return a model's tensors, in the order of `tensors_of`, as views of two vectors on a device.

    Args:
        packed: [P] floats and [Q] ints; NumPy arrays are copied to the device, tensors are already there.
        layout: of the model.
        device: of the views.

    Raises:
        ValueError: the vectors do not have the layout's lengths.
    """
    layout.check(packed)
    floats, ints = (
        # `torch.tensor` copies: `from_numpy` would share the read-only bytes of a message.
        vector if isinstance(vector, torch.Tensor) else torch.tensor(vector).to(device)
        for vector in packed
    )
    return [(ints if entry.integer else floats)[entry.columns].view(entry.shape) for entry in layout.entries]
