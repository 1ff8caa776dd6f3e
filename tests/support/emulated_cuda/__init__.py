"""A CUDA device for machines without one: PyTorch's own CUDA code, on the memory and with the arithmetic of the host.

`runtime.cpp` stands in for CUDA's runtime and cuBLAS, and `kernels.py` computes what kernels would. So the allocator,
streams, generators and graphs are PyTorch's, and only the numbers are a CPU's. cuDNN, which talks to a GPU past the
runtime, is off.

`command` makes a command run on it; as a plugin of pytest (`-p tests.support.emulated_cuda`) this module switches it
on. A test in which streams race fails.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.emulated_cuda import kernels

HERE = Path(__file__).parent
SITE = Path(torch.__file__).parent.parent
HEADERS = SITE / "triton/backends/nvidia/include"  # Triton brings them along
LIBRARY = "libemulated_cuda.so"
WRITTEN_FOR = "2.14."


def missing():
    """Say what the emulation wants on this machine; None if it has all."""
    if not torch.__version__.startswith(WRITTEN_FOR):
        return f"the emulated GPU is written for PyTorch {WRITTEN_FOR}, not {torch.__version__}"
    if not (torch.version.cuda or "").startswith("13."):
        return "PyTorch is not built for CUDA 13"
    if not (HEADERS / "cuda_runtime_api.h").exists():
        return "there are no headers of CUDA"
    return None if shutil.which("g++") and shutil.which("nm") else "there is no compiler"


def build(folder):
    """Compile the runtime, with a function that does nothing for everything else that PyTorch links against."""
    compiler = ["g++", "-std=c++17", "-O2", "-fPIC", "-fno-builtin", "-w"]
    runtime, rest = folder / "runtime.o", folder / "rest.cpp"
    subprocess.run([*compiler, f"-I{HEADERS}", "-c", HERE / "runtime.cpp", "-o", runtime], check=True)
    wanted = {
        name
        for library in ("torch_cuda", "torch_cpu", "torch_python", "c10_cuda", "caffe2_nvrtc")
        for name in symbols(SITE / f"torch/lib/lib{library}.so", "--undefined-only", "--dynamic")
        if name.startswith(("cuda", "__cuda", "cublas")) or (name[:2] == "cu" and name[2:3].isupper())
    }
    absent = sorted(wanted - symbols(runtime, "--defined-only"))
    rest.write_text("\n".join(f'extern "C" int {name}() {{ return 0; }}' for name in absent))
    library = folder / LIBRARY
    shared = [*compiler, "-shared", "-Wl,--no-as-needed"]
    subprocess.run([*shared, f"-Wl,-soname,{LIBRARY}", runtime, rest, "-o", library], check=True)
    driver = "libcuda.so.1"  # PyTorch looks for it, and finds the functions in the other one
    subprocess.run([*shared, f"-Wl,-soname,{driver}", library, "-o", folder / driver], check=True)


def symbols(library, *which):
    listed = subprocess.run(["nm", *which, library], check=True, capture_output=True, text=True).stdout
    return {line.split()[-1].partition("@")[0] for line in listed.splitlines()}


def command(folder, *arguments):
    """Return a command of this Python that finds a GPU, and the environment for it."""
    first = {"LD_PRELOAD": folder / LIBRARY, "LD_LIBRARY_PATH": folder, "PYTHONPATH": HERE.parents[2]}
    paths = {name: ":".join(filter(None, [str(path), os.environ.get(name)])) for name, path in first.items()}
    return [sys.executable, *arguments], {**os.environ, **paths, "OMP_NUM_THREADS": "1"}


def switch_on():
    """Make PyTorch compute on the emulated device, in this process and from here on."""
    runtime = kernels.runtime = ctypes.CDLL(os.environ["LD_PRELOAD"].split(":")[0])
    runtime.emulated_access.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p,
    ]  # fmt: skip
    runtime.emulated_races.restype = ctypes.c_long
    flags = torch.backends.cudnn.flags
    torch.backends.cudnn.flags = lambda **settings: flags(**{**settings, "enabled": False})
    torch.backends.cudnn.enabled = False
    torch.cuda.CUDAGraph = kernels.Graph
    kernels.Arithmetic().__enter__()


def races():
    """Return how many there have been."""
    return kernels.runtime.emulated_races()


def pytest_configure():
    switch_on()


@pytest.fixture(autouse=True)
def _no_races():
    before = races()
    yield
    assert races() == before, "streams race: see what the emulated CUDA wrote to stderr"
