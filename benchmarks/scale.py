"""Seconds and memory of runs with many clients in one process, and how both grow with the clients.

Two settings: Fashion-MNIST among 1,000 clients, Dirichlet 0.1, 50 a round; and handwritten digits, repeated so that
each client has 14, among 10,000 clients, IID, 100 a round. Then the second with other numbers of clients. One local
epoch, so that the rest of a round is visible; each setting in its own process, after a small run that loads
everything once. Seconds of a round are wall-clock time, the others CPU time, which other programs change little; the
median of twelve rounds. Memory is the peak of a whole run above that of the process before it. Linux only.

    .venv/bin/python benchmarks/scale.py --data-dir FOLDER
"""

import gc
import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

from fedmr_flwr import FedMR
from fedmr_flwr.client import app as client
from fedmr_flwr.config.loading import parse
from fedmr_flwr.data import partition_files, partitions
from fedmr_flwr.launch import engines
from fedmr_flwr.report import plots
from fedmr_flwr.report.display import Display
from fedmr_flwr.server import run as server
from fedmr_flwr.server.run import run as run_server
from fedmr_flwr.wire.grids.roster import RosterGrid

EXAMPLES, WARM_CLIENTS = 14, 5
# The first rounds are dropped: PyTorch's first steps are slow.
ROUNDS, DROPPED = 14, 2


@dataclass(frozen=True)
class Case:
    """A setting."""

    clients: int
    per_round: int
    data: str = "digits"

    def __str__(self) -> str:
        return f"{self.data}, {self.clients:,} clients, {self.per_round} a round"


@dataclass(frozen=True)
class Cost:
    """Seconds, the last two of them per round, and MiB."""

    partition: float
    picture: float
    roster: float
    round: float
    overhead: float
    memory: float


SETTINGS = (Case(1_000, 50, "Fashion-MNIST"), Case(10_000, 100))
PER_ROUND = tuple(Case(10_000, per_round) for per_round in (25, 50, 100, 200))
CLIENTS = tuple(Case(clients, 100) for clients in (100, 1_000, 10_000))


def write_digits(path: Path, clients: int) -> None:
    """Write scikit-learn's digits, repeated, as a user's own data set."""
    bunch = load_digits()
    images, labels = bunch.images.astype(np.uint8), bunch.target.astype(np.int64)
    count = EXAMPLES * clients
    np.savez(
        path, x_train=np.resize(images, (count, 8, 8)), y_train=np.resize(labels, count), x_test=images, y_test=labels
    )


def settings_of(case: Case, folder: Path, data_dir: Path) -> dict[str, Any]:
    """Write what the case needs to a folder and return its configuration."""
    values = {
        "clients": case.clients,
        "clients-per-round": case.per_round,
        "rounds": ROUNDS,
        "evaluate-every": ROUNDS,
        "engine": "in-process",
        "device": "cpu",
        "run-dir": folder / "run",
        "training": {"local-epochs": 1},
    }
    if case.data == "digits":
        write_digits(folder / "digits.npz", case.clients)
        return values | {"data": {"name": f"npz:{folder}/digits.npz"}, "partition": {"name": "iid"}}
    values |= {"data": {"name": "fashion-mnist"}, "data-dir": data_dir}
    return values | {"partition": {"name": "dirichlet", "alpha": 0.1, "fill-up": True}}


@contextmanager
def timed(owner: Any, name: str) -> Iterator[list[float]]:
    """Collect the CPU seconds of each call of a function inside the block."""
    function, seconds = getattr(owner, name), []

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.thread_time() - start)

    with mock.patch.object(owner, name, wrapper):
        yield seconds


def run(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Run an experiment and return the metrics of its rounds."""
    settings = parse(values, "scale.py")
    with Display(settings.rounds, Console(file=io.StringIO())) as display:
        return run_server(settings, engines.grid_of(settings), display).read_rows()


def memory(name: str) -> float:
    """Return this process's "VmRSS", MiB now, or "VmHWM", the most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(case: Case, data_dir: Path) -> Cost:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        values = settings_of(case, folder, data_dir)
        partition_files.save(np.split(np.arange(EXAMPLES * WARM_CLIENTS), WARM_CLIENTS), folder / "warm.npz")
        run(
            values
            | {"clients": WARM_CLIENTS, "clients-per-round": WARM_CLIENTS, "rounds": DROPPED}
            | {"partition": {"name": f"file:{folder}/warm.npz"}, "run-dir": folder / "warm"}
        )
        gc.collect()
        forget_peak()
        before = memory("VmRSS")
        once = [(partitions, "split"), (plots, "clients"), (server, "RosterGrid")]
        partition, picture, roster = (stack.enter_context(timed(*function)) for function in once)
        whole = [(FedMR, "configure_train"), (RosterGrid, "exchange"), (FedMR, "judge"), (FedMR, "aggregate")]
        round_parts = [stack.enter_context(timed(*function)) for function in whole]
        training = stack.enter_context(timed(client, "fit"))
        rows = run(values)
        assert not any(row["failures"] for row in rows)
        overhead = np.sum(round_parts, 0) - np.reshape(training, (ROUNDS, case.per_round)).sum(1)
        return Cost(
            sum(partition),
            sum(picture),
            sum(roster),
            float(np.median([row["seconds"] for row in rows[DROPPED:]])),
            float(np.median(overhead[DROPPED:])),
            memory("VmHWM") - before,
        )


def settings_table(costs: dict[Case, Cost]) -> Table:
    table = Table(caption="seconds; memory: MiB at the peak")
    table.add_column("")
    for name in ("partition", "picture", "roster", "a round", "not training", "memory"):
        table.add_column(name, justify="right")
    for case in SETTINGS:
        cost = costs[case]
        once = (f"{value:.2f}" for value in (cost.partition, cost.picture, cost.roster))
        table.add_row(str(case), *once, f"{cost.round:.2f}", f"{cost.overhead:.3f}", f"{cost.memory:.0f}")
    return table


def growth_table(costs: dict[Case, Cost], series: Sequence[Sequence[Case]]) -> Table:
    table = Table(caption="not training: ms a round; memory: MiB at the peak")
    for name in ("clients", "a round", "not training", "x", "memory", "x"):
        table.add_column(name, justify="right")
    for cases in series:
        first = costs[cases[0]]
        for case in cases:
            cost = costs[case]
            table.add_row(
                *(f"{case.clients:,}", str(case.per_round)),
                *(f"{1000 * cost.overhead:.0f}", f"{cost.overhead / first.overhead:.2f}"),
                *(f"{cost.memory:.0f}", f"{cost.memory / first.memory:.2f}"),
            )
        table.add_section()
    return table


def main(data_dir: Annotated[Path, typer.Option(help="Folder of Fashion-MNIST's idx files.")]) -> None:
    """Measure all settings in turn and print two tables."""
    console, costs = Console(width=110), {}
    cases = list(dict.fromkeys([*SETTINGS, *PER_ROUND, *CLIENTS]))
    # A new process for each setting, so that its peak of memory is its own.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh:
        for at, case in enumerate(cases, 1):
            console.print(f"{at}/{len(cases)}: {case}")
            costs[case] = fresh.submit(measure, case, data_dir).result()
    console.print(settings_table(costs))
    console.print(growth_table(costs, (PER_ROUND, CLIENTS)))


if __name__ == "__main__":
    typer.run(main)
