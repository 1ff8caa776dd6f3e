"""Devices: which one, in which precision and memory format it computes, and when its memory is used up."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fedmr_flwr import config
from fedmr_flwr.data.base import Dataset
from fedmr_flwr.errors import DeviceError


def to_input(dataset: Dataset, inputs: torch.Tensor, precision: config.Precision = "float32") -> torch.Tensor:
    """Turn uint8 inputs into what a model takes, on the device where they are.

    Args:
        dataset: how to prepare them.
        inputs: [B, C, H, W] or [B, T] uint8.
        precision: of the arithmetic to come.

    Returns:
        [B, C, H, W] float32, in the memory format that is fastest there, or [B, T] as it is.
    """
    prepared = dataset.prepare(inputs)
    if prepared.ndim < 4:
        return prepared
    return prepared.contiguous(memory_format=_memory_format(inputs.device, precision))


def place(model: nn.Module, device: torch.device, precision: config.Precision = "float32") -> None:
    """Move a model to a device, in the memory format that is fastest there."""
    model.to(device).to(memory_format=_memory_format(device, precision))


def _memory_format(device: torch.device, precision: config.Precision) -> torch.memory_format:
    """Return the faster order of an image's values: channels last takes half the time on a CPU, and with bf16."""
    last = device.type == "cpu" or precision == "bf16"
    return torch.channels_last if last else torch.contiguous_format


@contextmanager
def arithmetic(precision: config.Precision, device: torch.device) -> Iterator[None]:
    """Compute on a CUDA device in some precision inside the block, and as before after it.

    Args:
        precision: float32, by deterministic algorithms and the same in every run; tf32, products of ten bits, or
            bf16, of seven, by whatever algorithms PyTorch chooses.
        device: where to compute; a CPU knows only float32, and is always deterministic.

    Raises:
        DeviceError: the device is a CPU, and another precision is asked for.
    """
    if device.type == "cpu":
        if precision != "float32":
            raise DeviceError(f"precision is {precision}, which needs a CUDA device; leave it out on a CPU")
        yield
        return
    exact = precision == "float32"
    # Read when cuBLAS is first used; without it, products of matrices differ from run to run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    deterministic: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    filled, warns = deterministic.fill_uninitialized_memory, torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.use_deterministic_algorithms(exact)
        deterministic.fill_uninitialized_memory = False  # a kernel for every new tensor, which finds only bugs
        torch.set_float32_matmul_precision("highest" if exact else "high")
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=exact, allow_tf32=not exact):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=warns)
        torch.set_float32_matmul_precision(before[1])
        deterministic.fill_uninitialized_memory = filled


def pick_device(name: str) -> torch.device:
    """Turn a device's name into a device.

    Args:
        name: auto (CUDA where there is one), cpu, cuda or cuda:N.

    Raises:
        DeviceError: CUDA is asked for where there is none, or not that many.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device("cuda" if name == "auto" else name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise DeviceError(
            f"device is {name} but the number of CUDA devices here is {count}; use device=auto or device=cpu"
        )
    return device


def is_want_of_memory(error: BaseException | None) -> bool:
    """Tell whether an exception, or what it came of, says that a device has no memory left.

    PyTorch's allocator has a class for it; CUDA itself and its libraries only have words.
    """
    if error is None:
        return False
    said = str(error).lower()
    wanting = isinstance(error, torch.OutOfMemoryError) or "out of memory" in said or "alloc_failed" in said
    return wanting or is_want_of_memory(error.__cause__ or error.__context__)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch use `count` CPU threads inside the block, and as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
