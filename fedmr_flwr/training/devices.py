"""Devices: choice, precision, memory format, threads, default generator, and errors for lack of memory."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from fedmr_flwr.config.training import Precision
from fedmr_flwr.data.base import Dataset
from fedmr_flwr.errors import DeviceError


def to_input(dataset: Dataset, inputs: torch.Tensor, precision: Precision = "float32") -> torch.Tensor:
    """Convert inputs to a model's, on their device.

    Args:
        dataset: defines their conversion.
        inputs: [B, C, H, W] or [B, T] uint8, or [B, ...] float32.
        precision: of the following arithmetic.

    Returns:
        [B, C, H, W] float32, in the fastest memory format of the device; other shapes unchanged.
    """
    prepared = dataset.prepare(inputs)
    if prepared.ndim != 4:
        return prepared
    return prepared.contiguous(memory_format=_memory_format(inputs.device, precision))


def place(model: nn.Module, device: torch.device, precision: Precision = "float32") -> None:
    """Move a model to a device, in the device's fastest memory format."""
    model.to(device)
    # Not `model.to(memory_format=…)`, which fails for a model with three-dimensional convolutions.
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            # Not `contiguous`, which leaves a kernel of one channel as it is; its output then has the other format,
            # in which pooling takes seven times as long.
            tensor.data = tensor.data.to(memory_format=_memory_format(device, precision))


def _memory_format(device: torch.device, precision: Precision) -> torch.memory_format:
    """Return the faster memory format for images."""
    # Channels last takes half the time on a CPU, and with bf16 on a GPU. Fixed for each device and not measured at
    # run time: the format decides which kernels run, and so the bits.
    last = device.type == "cpu" or precision == "bf16"
    return torch.channels_last if last else torch.contiguous_format


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Set the precision of a CUDA device inside the block, and restore it afterwards.

    Args:
        precision: float32: deterministic algorithms, equal results in every run; tf32: products with ten bits, or
            bf16: with seven, by any algorithm that PyTorch chooses.
        device: of the computation; a CPU is always deterministic.

    Raises:
        DeviceError: as `check_precision`.
    """
    check_precision(precision, device)
    if device.type == "cpu":
        yield
        return
    exact = precision == "float32"
    # cuBLAS reads it when it is first used; without it, matrix products differ from run to run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    deterministic: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    filled, warns = deterministic.fill_uninitialized_memory, torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.use_deterministic_algorithms(exact)
        deterministic.fill_uninitialized_memory = False  # costs a kernel for every new tensor
        torch.set_float32_matmul_precision("highest" if exact else "high")
        # No benchmark mode: it would choose kernels by their measured time, so the bits could differ from run to run.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=exact, allow_tf32=not exact):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=warns)
        torch.set_float32_matmul_precision(before[1])
        deterministic.fill_uninitialized_memory = filled


def check_precision(precision: Precision, device: torch.device) -> None:
    """Check that a device supports a precision.

    Raises:
        DeviceError: the device is a CPU, which supports only float32.
    """
    if device.type == "cpu" and precision != "float32":
        raise DeviceError(f"precision is {precision}, which needs a CUDA device; leave it out on a CPU")


def generators_of(device: torch.device) -> tuple[torch.Generator, ...]:
    """Return new generators for what a model on a device may draw from: the device and, for a GPU, also the CPU."""
    # On the CPU a model may draw, for instance, which of its blocks to leave out.
    devices = [device] if device.type == "cpu" else [device, torch.device("cpu")]
    return tuple(torch.Generator(each) for each in devices)


@contextmanager
def default_generators(own: Sequence[torch.Generator]) -> Iterator[None]:
    """Use other generators as PyTorch's default generators inside the block, see `default_generator`."""
    with ExitStack() as stack:
        for generator in own:
            stack.enter_context(default_generator(generator))
        yield


@contextmanager
def default_generator(own: torch.Generator) -> Iterator[None]:
    """Use another generator as PyTorch's default generator of its device inside the block.

    Modules that draw from the default generator, such as `nn.Dropout`, then draw from `own`; afterwards `own` has
    advanced, and the default generator has its earlier state.

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
    # Not a copy of its state: a graph that is captured in the block draws from `own` in every replay, and so shares
    # nothing with the graphs of other streams.
    shared = default.graphsafe_get_state()
    default.graphsafe_set_state(own.graphsafe_get_state())
    try:
        yield
    finally:
        default.graphsafe_set_state(shared)


def pick_device(name: str) -> torch.device:
    """Return the device of a name.

    Args:
        name: auto (CUDA if available), cpu, cuda or cuda:N.

    Raises:
        DeviceError: the CUDA device does not exist.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device("cuda" if name == "auto" else name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise DeviceError(
            f"device is {name} but the number of CUDA devices on this machine is {count}; use device=auto or cpu"
        )
    return device


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an exception, or its cause, reports that a device is out of memory."""
    if error is None:
        return False
    # PyTorch's allocator raises its own class; errors of CUDA and its libraries are recognised only by their text.
    text = str(error).lower()
    found = isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "alloc_failed" in text
    return found or is_out_of_memory(error.__cause__ or error.__context__)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Set the number of PyTorch's CPU threads inside the block, and restore it afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
