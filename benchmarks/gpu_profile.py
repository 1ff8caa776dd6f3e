"""Where a round's time goes in the engine gpu: PyTorch's profile of five rounds after a warm-up, as two tables.

.venv/bin/python benchmarks/gpu_profile.py --data-dir FOLDER > profile.txt
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from flwr.app import Message
from rich.console import Console
from torch.profiler import ProfilerActivity, profile

from fedmr_flwr.config.loading import load
from fedmr_flwr.gpu.grid import GpuGrid
from fedmr_flwr.report.display import Display
from fedmr_flwr.server.run import run

CONF = Path(__file__).parent.parent / "conf" / "fashion-mnist-cnn.yaml"
ROUNDS = 5


class ProfiledGrid(GpuGrid):
    """Profiles some of its exchanges."""

    profiler: profile
    profiled: range
    exchanges = 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Exchange messages, with the profiler running if it is time."""
        self.exchanges += 1
        if self.exchanges == self.profiled.start:
            self.profiler.start()
        replies = super().send_and_receive(messages, timeout=timeout)
        if self.exchanges == self.profiled.stop:
            self.profiler.stop()
        return replies


def main(
    data_dir: Annotated[Path, typer.Option(help="Folder of Fashion-MNIST's idx files.")],
    warm_up: Annotated[int, typer.Option(help="Rounds before the profile.")] = 120,
    device: Annotated[str, typer.Option(help="cuda or cuda:N.")] = "cuda",
) -> None:
    """Profile and print the operations that take longest on the GPU, and on the host."""
    with tempfile.TemporaryDirectory() as folder:
        rounds = warm_up + ROUNDS
        settings = load(
            CONF,
            [
                "engine=gpu", f"device={device}", f"rounds={rounds}", f"evaluate-every={rounds}",
                "partition.alpha=0.5", f"data-dir={data_dir}", f"run-dir={folder}/run",
            ],
        )  # fmt: skip
        display = Display(settings.rounds, Console(stderr=True))
        with display:
            grid = ProfiledGrid(settings, display.print)
            grid.profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            # The first exchange asks the clients for their numbers.
            grid.profiled = range(warm_up + 2, rounds + 1)
            run(settings, grid, display)
    for order in ("cuda_time_total", "cpu_time_total"):
        print(grid.profiler.key_averages().table(sort_by=order, row_limit=40))


if __name__ == "__main__":
    typer.run(main)
