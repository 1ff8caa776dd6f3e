"""Devices: their choice, precision, memory format, threads and default generator, and when memory runs out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fedmr_flwr.config.training import Precision
from fedmr_flwr.data.base import Dataset
from fedmr_flwr.errors import DeviceError


def to_input(dataset: Dataset, inputs: torch.Tensor, precision: Precision = "float32") -> torch.Tensor:
    """Turn uint8 inputs into what a model takes, on their device.

    Args:
        dataset: how to prepare them.
        inputs: [B, C, H, W] or [B, T] uint8.
        precision: of the arithmetic that follows.

    Returns:
        [B, C, H, W] float32, in the memory format that is fastest there, or [B, T] unchanged.
    """
    prepared = dataset.prepare(inputs)
    if prepared.ndim < 4:
        return prepared
    return prepared.contiguous(memory_format=_memory_format(inputs.device, precision))


def place(model: nn.Module, device: torch.device, precision: Precision = "float32") -> None:
    """Move a model to a device, in the memory format that is fastest there."""
    model.to(device).to(memory_format=_memory_format(device, precision))


def _memory_format(device: torch.device, precision: Precision) -> torch.memory_format:
    """Return the faster order of an image's values."""
    # Channels last takes half the time on a CPU, and with bf16 on a GPU.
    last = device.type == "cpu" or precision == "bf16"
    return torch.channels_last if last else torch.contiguous_format


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Set the precision of a CUDA device inside the block, and restore it afterwards.

    Args:
        precision: float32, by deterministic algorithms and the same in every run; tf32, products of ten bits, or
            bf16, of seven, by whatever algorithms PyTorch chooses.
        device: where to compute; a CPU is always deterministic.

    Raises:
        DeviceError: as `check_precision`.
    """
    check_precision(precision, device)
    if device.type == "cpu":
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


def check_precision(precision: Precision, device: torch.device) -> None:
    """Check that a device can compute in a precision.

    Raises:
        DeviceError: the device is a CPU, which knows only float32.
    """
    if device.type == "cpu" and precision != "float32":
        raise DeviceError(f"precision is {precision}, which needs a CUDA device; leave it out on a CPU")


@contextmanager
def default_generator(own: torch.Generator) -> Iterator[None]:
    """Let another generator stand in for PyTorch's default one of its device inside the block.

    What draws without naming a generator, such as `nn.Dropout`, draws from `own` there; afterwards `own` is as far as
    it has drawn, and the default generator as it was before.

    Args:
        own: on the CPU or a CUDA device.
    """
    if own.device.type == "cpu":
        default = torch.default_generator
        before = default.get_state()
        default.set_state(own.get_state())
        try:
            yield
        finally:
            own.set_state(default.get_state())
            default.set_state(before)
        return
    default = torch.cuda.default_generators[own.device.index or 0]
    # Not a copy of its values: a graph that is captured in the block draws from `own` in every replay, and so shares
    # nothing with the graphs of other streams.
    shared = default.graphsafe_get_state()
    default.graphsafe_set_state(own.graphsafe_get_state())
    try:
        yield
    finally:
        default.graphsafe_set_state(shared)


def pick_device(name: str) -> torch.device:
    """Turn a device's name into a device.

    Args:
        name: auto (CUDA where there is one), cpu, cuda or cuda:N.

    Raises:
        DeviceError: there is no such CUDA device.
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


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an exception, or its cause, reports that a device is out of memory."""
    if error is None:
        return False
    # PyTorch's allocator has a class for it; CUDA itself and its libraries have only a text.
    text = str(error).lower()
    found = isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "alloc_failed" in text
    return found or is_out_of_memory(error.__cause__ or error.__context__)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch use `count` CPU threads inside the block, and restore their number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
