"""Devices: their choice, threads, precision, and whose generator modules draw from."""

import os

import pytest
import torch

from fedmr_flwr.errors import DeviceError
from fedmr_flwr.training.devices import (
    arithmetic,
    check_precision,
    default_generator,
    is_out_of_memory,
    pick_device,
    place,
    threads,
)

CPU = torch.device("cpu")


def test_threads_are_restored():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), threads(1):
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_missing_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == CPU
    with pytest.raises(
        DeviceError, match="device is cuda but the number of CUDA devices on this machine is 0; use device=auto"
    ):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match="device is cuda:2 but the number of CUDA devices on this machine is 2"):
        pick_device("cuda:2")


def flags():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.allow_tf32,
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.mark.parametrize(
    ("precision", "inside"),
    [
        ("float32", (True, "highest", True, False, False)),
        *[(name, (False, "high", False, True, False)) for name in ("tf32", "bf16")],
    ],
)
def test_gpu_precision_is_restored(monkeypatch, precision, inside):
    monkeypatch.setattr(os, "environ", {})
    before = flags()
    with arithmetic(precision, torch.device("cuda")):
        assert flags() == inside
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert flags() == before
    with pytest.raises(KeyError), arithmetic(precision, torch.device("cuda")):
        raise KeyError
    assert flags() == before


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_cpu_supports_only_float32(precision):
    with pytest.raises(DeviceError, match=f"precision is {precision}, which needs a CUDA device"):
        check_precision(precision, CPU)
    with pytest.raises(DeviceError), arithmetic(precision, CPU):
        pass


def test_float32_sets_no_flags_on_a_cpu():
    before = flags()
    with arithmetic("float32", CPU):
        assert flags() == before


def test_modules_draw_from_their_generator():
    own, before = torch.Generator().manual_seed(3), torch.get_rng_state()
    with default_generator(own):
        first = torch.rand(2)
    torch.rand(5)
    with default_generator(own):
        second = torch.rand(2)
    torch.set_rng_state(before)
    assert torch.equal(torch.cat([first, second]), torch.rand(4, generator=torch.Generator().manual_seed(3)))


def test_out_of_memory_by_cause():
    error = RuntimeError("a step cannot be captured")
    error.__cause__ = RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("a step cannot be captured"))


def test_models_of_volumes_are_placed():
    model = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.Conv2d(2, 3, 3))
    place(model, torch.device("cpu"))
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[0].weight.is_contiguous()


def test_convolutions_of_one_channel_give_channels_last():
    model = torch.nn.Conv2d(1, 8, 5)
    place(model, CPU)
    assert model(torch.zeros(4, 1, 12, 12)).is_contiguous(memory_format=torch.channels_last)
