"""Seconds per round on one GPU: Flower's simulation with ten actors, the in-process engine, and the engine gpu.

The setting is conf/fashion-mnist-cnn.yaml with alpha 0.5, or another one. Warm-up rounds are dropped; every
tenth round ends with an evaluation, whose time is included.

    .venv/bin/python benchmarks/gpu.py --data-dir FOLDER
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from fedmr_flwr import models
from fedmr_flwr.config.loading import load
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.data import datasets, partition_files
from fedmr_flwr.training.devices import arithmetic, place
from fedmr_flwr.training.lane import Lane
from fedmr_flwr.training.rules import LocalRule
from fedmr_flwr.training.schedule import step_count

CONF = Path(__file__).parent.parent / "conf"
ENGINES = {
    "Ray, ten actors on the card": ["--engine", "ray", "ray.client-gpus=0.1"],
    "in process": ["--engine", "in-process"],
    "gpu": ["--engine", "gpu"],
}


@dataclass
class Measured:
    """The costs of a run.

    Attributes:
        seconds: of a round, evaluation included.
        steps: SGD steps of a round.
        megabytes: the peak of the card's memory above what was used before.
    """

    seconds: float
    steps: float
    megabytes: float


@dataclass
class Card:
    """The limits of the card and its host.

    Attributes:
        flops: of a step, in float operations.
        kernels: of a step.
        flops_per_second: of a large product of matrices.
        launches_per_second: of small kernels, one after the other.
    """

    flops: int
    kernels: int
    flops_per_second: float
    launches_per_second: float


def used_megabytes() -> float:
    """Return the card's memory in use, by all processes."""
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 1e6


@contextmanager
def watched() -> Iterator[list[float]]:
    """Record the card's memory in use inside the block, in megabytes."""
    seen, ended = [used_megabytes()], threading.Event()

    def look() -> None:
        while not ended.wait(0.2):
            seen.append(used_megabytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def measure(options: list[str], conf: Path, overrides: list[str], warm: int) -> Measured:
    """Run the command line; return the costs of its rounds after the warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        command = [Path(sys.executable).parent / "fedmr", "run", conf, *overrides, f"run-dir={out}", *options]
        with watched() as seen:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][warm:]
        sizes = [len(part) for part in partition_files.read(out / "partition.npz")]
        settings = load(out / "config.yaml")
    steps = np.mean([sum(steps_of(sizes[client], settings) for client in row["clients"]) for row in rows])
    seconds = np.mean([row["seconds"] + row.get("evaluation-seconds", 0) for row in rows])
    return Measured(float(seconds), float(steps), max(seen) - seen[0])


def steps_of(examples: int, settings: Settings) -> int:
    """Return the number of a client's steps in a round."""
    return step_count(examples, settings.training)


def card(settings: Settings, device: torch.device) -> Card:
    """Count the operations of a step, and measure the card's limits."""
    dataset = datasets.load(settings.data, settings.data_dir, settings.seed)
    model = models.build(settings.model.name, dataset.input_shape, dataset.classes)
    place(model, device, settings.precision)
    chosen = dataset.train.select(np.arange(settings.training.batch_size), device)
    training = settings.training.model_copy(update={"local_epochs": 3})  # of one step each
    lane = Lane(model, dataset, chosen, training, settings.precision)
    with arithmetic(settings.precision, device):
        lane.begin(stream(settings.seed, "train"), LocalRule())
        lane.step()
        with FlopCounterMode(display=False) as counter:
            lane.step()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            lane.step()
        kernels = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events())
        large = torch.rand(8192, 8192, device=device, dtype=torch.bfloat16 if settings.precision == "bf16" else None)
        products = 2 * 8192**3 * 10 / seconds_of(lambda: large @ large, 10)
        small = torch.zeros(1, device=device)
        launches = 10000 / seconds_of(lambda: small.add_(1), 10000)
    return Card(counter.get_total_flops(), kernels, products, launches)


def seconds_of(act: Callable[[], object], times: int) -> float:
    """Return the seconds that the card takes for repeated calls."""
    act()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        act()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main(
    data_dir: Annotated[Path, typer.Option(help="Folder of the data files.")],
    conf: Annotated[Path, typer.Option(help="A configuration.")] = CONF / "fashion-mnist-cnn.yaml",
    override: Annotated[list[str], typer.Option(help="key=value; may be repeated.")] = ["partition.alpha=0.5"],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Measured rounds.")] = 50,
    warm: Annotated[int, typer.Option(help="Warm-up rounds, in which graphs are captured.")] = 100,
    clients: Annotated[list[int], typer.Option(help="Clients a round; may be repeated.")] = [5, 10, 20, 50],  # noqa: B006
) -> None:
    """Measure all in turn and print a table."""
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py: this machine has no CUDA device", file=sys.stderr)
        raise typer.Exit(1)
    table = Table(caption=f"{torch.cuda.get_device_name()}, torch {torch.__version__}; mean of {rounds} rounds")
    for name in ("", "K", "s/round", "x gpu", "steps/s", "MB", "of the arithmetic, %", "of the launches, %"):
        table.add_column(name, justify="right" if name else "left")
    common = [*override, "device=cuda", f"data-dir={data_dir}", "evaluate-every=10"]
    limits = card(load(conf, [*common, "engine=gpu"]), torch.device("cuda"))
    for count in clients:
        found = {}
        for name, options in ENGINES.items():
            before = 5 if name != "gpu" else warm
            overrides = [*common, f"rounds={before + rounds}", f"clients-per-round={count}"]
            found[name] = measure(options, conf, overrides, before)
        for name, one in found.items():
            rate = one.steps / one.seconds
            arithmetic_share = rate * limits.flops / limits.flops_per_second
            launch_share = rate * limits.kernels / limits.launches_per_second
            ratio = one.seconds / found["gpu"].seconds
            cells = [f"{one.seconds:.3f}", f"{ratio:.1f}", f"{rate:,.0f}", f"{one.megabytes:,.0f}"]
            table.add_row(name, str(count), *cells, f"{100 * arithmetic_share:.1f}", f"{100 * launch_share:.0f}")
    Console(width=110).print(table)
    Console().print(
        f"a step: {limits.flops / 1e6:.0f} Mflop, {limits.kernels} kernels; the card: "
        f"{limits.flops_per_second / 1e12:.0f} Tflop/s, the host: {limits.launches_per_second:,.0f} launches/s"
    )


if __name__ == "__main__":
    typer.run(main)
