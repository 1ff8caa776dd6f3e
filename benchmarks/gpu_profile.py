"""Where the time of a training goes in the engine gpu: one cohort of clients, trained again and again.

Prints the milliseconds of a round's training: in lockstep where the model allows it, side by side, and one client
after another; then every kernel of a step with its microseconds: alone, while all clients train side by side, and in
lockstep. In float32 it compares the models, bit for bit, with those of lanes that launch every kernel on their own.

    .venv/bin/python benchmarks/gpu_profile.py --data-dir FOLDER
    .venv/bin/python benchmarks/gpu_profile.py --data-dir FOLDER --override precision=tf32
"""

import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from fedmr_flwr import models
from fedmr_flwr.config.loading import load
from fedmr_flwr.core.layout import Packed
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.data import partition_files
from fedmr_flwr.gpu.graphs import GraphLane
from fedmr_flwr.gpu.grid import GpuGrid, GraphStack
from fedmr_flwr.gpu.stack import Share
from fedmr_flwr.models.packing import overwrite, pack
from fedmr_flwr.server.experiment import Experiment
from fedmr_flwr.training.devices import arithmetic, place
from fedmr_flwr.training.lane import Lane
from fedmr_flwr.training.rules import LocalRule
from fedmr_flwr.training.schedule import step_count

CONF = Path(__file__).parent.parent / "conf"


class CohortStack(GraphStack):
    """A stack that takes the clients of the cohort without messages."""

    def start(self, model: Packed, shares: Sequence[Share]) -> None:
        """Assign the clients."""
        for part in self._parts:
            overwrite(part, model, self._layout)
        self.begin_all(shares)
        self._ready()

    def replay_step(self) -> None:
        """Replay the captured step once."""
        for graph in self._graphs.values():
            assert graph
            graph.replay()


class CohortLane(GraphLane):
    """A lane that takes a client of the cohort without a message."""

    def start(self, model: Packed, indices: torch.Tensor, client: int) -> None:
        """Assign a client."""
        overwrite(self._tensors, model, self._layout)
        self.begin(stream(0, "train", client), LocalRule(), indices=indices)
        self._ready()

    def replay_step(self, size: int) -> None:
        """Replay the captured step of a batch size once."""
        graph = next(graph for (_, own), graph in self._graphs.items() if own == size and graph)
        graph.replay()


def seconds_of(act: Callable[[], object]) -> float:
    """Return the seconds until the GPU has finished a call."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    act()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def run_all(lanes: Sequence[Lane]) -> None:
    """Launch a step of each lane in turn until all have finished."""
    running = list(lanes)
    while running:
        running = [lane for lane in running if lane.step()]


def kernels_of(act: Callable[[], object]) -> list[Any]:
    """Return the profiler's events of the kernels that a call runs, in their order."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        act()
        torch.cuda.synchronize()
    found = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sorted(found, key=lambda event: event.time_range.start)


def main(
    data_dir: Annotated[Path, typer.Option(help="Folder of the data files.")],
    conf: Annotated[Path, typer.Option(help="A configuration.")] = CONF / "fashion-mnist-cnn.yaml",
    override: Annotated[list[str], typer.Option(help="key=value; may be repeated.")] = [],  # noqa: B006
    times: Annotated[int, typer.Option(help="Measured rounds.")] = 15,
) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        given = [f"data-dir={data_dir}", f"run-dir={folder}/run", "engine=gpu", "device=cuda", "partition.alpha=0.5"]
        settings = load(conf, [*given, *override])
        parts = Experiment(settings).parts
        assert parts is not None
        Path(folder, "run").mkdir()
        partition_files.save(parts, Path(folder, "run", "partition.npz"))
        chosen = stream(settings.seed, "cohort").choice(len(parts), settings.clients_per_round, replace=False)
        cohort = sorted(map(int, chosen), key=lambda client: -len(parts[client]))
        indices = [torch.from_numpy(parts[client]) for client in cohort]
        grid = GpuGrid(settings, print)
        arguments = grid._common
        network, layout = grid._model(), grid._layout
        initial = pack(network, layout)
        console = Console(width=130)
        with arithmetic(settings.precision, torch.device("cuda")):
            lanes = [CohortLane(model=grid._model(), **arguments) for _ in cohort]

            def begin(some: int = len(cohort)) -> None:
                for lane, own, client in zip(lanes[:some], indices, cohort, strict=False):
                    lane.start(initial, own, client)

            def timed(some: int) -> float:
                begin(some)
                return seconds_of(lambda: run_all(lanes[:some]))

            for _ in range(3):  # a step of each size without capture, its capture, and a replay
                timed(len(lanes))
            together = statistics.median(timed(len(lanes)) for _ in range(times))
            trained = digest(lanes, layout)
            longest = step_count(len(indices[0]), settings.training)
            alone = statistics.median(timed(1) for _ in range(5)) / longest
            begin()
            step = kernels_of(lambda: lanes[0].replay_step(settings.training.batch_size))
            begin()
            crowd: dict[str, list[float]] = {}
            for event in kernels_of(lambda: run_all(lanes)):
                crowd.setdefault(event.name, []).append(event.time_range.elapsed_us())
            stack, lockstep, kernels, stacked_digest = None, float("nan"), [], None
            if grid._stackable:
                stack = CohortStack(model=grid._model(), **arguments)

                def in_lockstep() -> float:
                    shares = [
                        Share(parts[client], settings.training, stream(0, "train", client)) for client in cohort
                    ]
                    stack.start(initial, shares)
                    return seconds_of(lambda: run_all([stack]))

                for _ in range(3):
                    in_lockstep()
                lockstep = statistics.median(in_lockstep() for _ in range(times))
                sha = hashlib.sha256()
                for model, _ in stack.end_all():
                    sha.update(model.on_host().floats.tobytes())
                stacked_digest = sha.hexdigest()
                in_lockstep()
                stack._at.zero_()
                kernels = kernels_of(stack.replay_step)
            apart, eager = [], 0.0
            for own, client in zip(indices, cohort, strict=True):
                model = models.build(settings.model.name, grid._dataset.input_shape, grid._dataset.classes)
                place(model, torch.device("cuda"), settings.precision)
                overwrite(list(model.state_dict().values()), initial, layout)
                lane = Lane(model, arguments["dataset"], arguments["examples"], settings.training, settings.precision)
                lane.begin(stream(0, "train", client), LocalRule(), indices=own)
                eager += seconds_of(lane.run)
                apart.append(lane)
    table = Table(
        "kernel", caption=f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {settings.precision}"
    )
    table.add_column("us alone", justify="right")
    table.add_column("us among all", justify="right")
    for event in step:
        among = np.median(crowd.get(event.name, [float("nan")]))
        table.add_row(event.name[:100], f"{event.time_range.elapsed_us():.2f}", f"{among:.2f}")
    console.print(table)
    total = sum(event.time_range.elapsed_us() for event in step)
    if kernels:
        table = Table("kernel in lockstep")
        table.add_column("us", justify="right")
        for event in kernels:
            table.add_row(event.name[:100], f"{event.time_range.elapsed_us():.2f}")
        console.print(table)
        console.print(
            f"in lockstep: {1e3 * lockstep:.1f} ms; a step: {len(kernels)} kernels of "
            f"{sum(event.time_range.elapsed_us() for event in kernels):.0f} us"
        )
    same = ""
    if settings.precision == "float32":
        expected = digest(apart, layout)
        same = f"; the same bits: side by side {trained == expected}"
        same += f", in lockstep {stacked_digest == expected}" if stacked_digest else ""
    console.print(
        f"{len(cohort)} clients, the largest with {longest} steps: {1e3 * together:.1f} ms side by side, "
        f"{1e3 * eager:.0f} ms one after another without graphs{same}\n"
        f"a step alone: {1e6 * alone:.0f} us, {len(step)} kernels of {total:.0f} us"
    )


def digest(lanes: Sequence[Lane], layout: Any) -> str:
    """Return a hash of the lanes' models."""
    sha = hashlib.sha256()
    for lane in lanes:
        sha.update(pack(lane.model, layout).floats.tobytes())
    return sha.hexdigest()


if __name__ == "__main__":
    typer.run(main)
