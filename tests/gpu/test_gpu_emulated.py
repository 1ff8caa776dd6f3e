"""What needs a GPU, on a machine without one: PyTorch's CUDA code on an emulated device."""

import subprocess
from pathlib import Path

import pytest
import torch

from tests.support import emulated_cuda

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU"),
    pytest.mark.skipif(emulated_cuda.missing() is not None, reason=str(emulated_cuda.missing())),
]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Return a function that runs Python with an emulated GPU."""
    folder = tmp_path_factory.mktemp("emulated-cuda")
    emulated_cuda.build(folder)

    def run(*arguments):
        command, environment = emulated_cuda.command(folder, *map(str, arguments))
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900)

    return run


@pytest.mark.parametrize("part", ["strategies", "networks", "not strategies and not networks"])
def test_cuda_tests_pass_emulated(python, tmp_path, part):
    options = ["-m", "cuda", "-k", part, "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'temp'}"]
    done = python(
        "-m",
        "pytest",
        "-p",
        "tests.support.emulated_cuda",
        *options,
        "tests/gpu/test_gpu.py",
        "tests/training/test_sgd.py",
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    summary = done.stdout.splitlines()[-1]
    assert "passed" in summary and "skipped" not in summary


# A tensor that one stream writes and another one reads, with and without waiting.
CODE = """
import torch
from tests.support import emulated_cuda
emulated_cuda.switch_on()
stream = torch.cuda.Stream()
values = torch.ones(3, device="cuda")
with torch.cuda.stream(stream):
    {wait}
    total = values.sum()
torch.cuda.current_stream().wait_stream(stream)
assert total.item() == 3
print(emulated_cuda.races())
"""


def test_emulator_finds_stream_races(python):
    waiting = "stream.wait_stream(torch.cuda.default_stream())"
    for wait, races in (waiting, "0"), ("pass", "1"):
        done = python("-c", CODE.format(wait=wait))
        assert (done.stdout.strip(), done.returncode) == (races, 0), done.stderr


def test_emulator_replays_graphs(python):
    done = python(
        "-c",
        """
import torch
from tests.support import emulated_cuda
emulated_cuda.switch_on()
values, graph = torch.zeros(3, device="cuda"), torch.cuda.CUDAGraph()
draws = torch.Generator("cuda").manual_seed(1)
drawn = [torch.empty(3, device="cuda").bernoulli_(0.5, generator=draws).tolist() for _ in range(20)]
draws.manual_seed(1)
with torch.cuda.graph(graph):
    doubled = values * 2
    again = torch.empty(3, device="cuda").bernoulli_(0.5, generator=draws)
replayed = []
for value in range(20):
    values.fill_(value)
    graph.replay()
    assert doubled.tolist() == [2 * value] * 3
    replayed.append(again.tolist())
assert replayed == drawn and len(set(map(tuple, drawn))) > 2
""",
    )
    assert done.returncode == 0, done.stderr
