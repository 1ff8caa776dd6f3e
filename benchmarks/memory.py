"""Memory that a data set as large as CIFAR-10 adds to each process of a run with two Ray actors.

.venv/bin/python benchmarks/memory.py
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from fedmr_flwr.config.data import Data
from fedmr_flwr.data import datasets
from fedmr_flwr.data.base import Dataset

HERE = Path(__file__).parent
CONF = HERE.parent / "conf" / "quickstart.yaml"


def load(folder: Path) -> Dataset:
    """Load the data set as every process of the run does, and log the memory that it adds.

    Every page is touched, as training on all clients would do sooner or later.
    """
    process = psutil.Process()
    datasets.load(Data(name="digits"), None)  # imports are not the data set's memory
    before = process.memory_full_info()
    data = datasets.load(Data(name="npz:images.npz"), folder)
    data.train.inputs.max(), data.test.inputs.max()
    after = process.memory_full_info()
    name = "Ray actor" if process.name().startswith("ray::") else "ServerApp"
    with (folder / "memory.tsv").open("a", encoding="utf-8") as file:
        file.write(f"{name} {process.pid}\t{after.uss - before.uss}\t{after.rss - before.rss}\n")
    return data


def main() -> None:
    """Run two rounds in Flower's simulation and print a table."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60_000, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, 60_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, test = slice(50_000), slice(50_000, None)
        arrays = {"x_train": images[train], "y_train": labels[train], "x_test": images[test], "y_test": labels[test]}
        np.savez(folder / "images.npz", **arrays)
        settings = [
            "rounds=2", "clients=100", "clients-per-round=4", "partition.name=iid", "training.local-epochs=1",
            "device=cpu", "data.name=memory:load", f"data-dir={folder}", f"run-dir={folder / 'run'}",
        ]  # fmt: skip
        command = [Path(sys.executable).parent / "fedmr", "run", CONF, *settings]
        env = os.environ | {"PYTHONPATH": str(HERE)}
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
        rows = [line.split("\t") for line in (folder / "memory.tsv").read_text().splitlines()]
    table = Table("process", caption=f"the data set: {images.nbytes / 1e6:.0f} MB")
    for heading in ("private MB added", "resident MB added", "private / data set"):
        table.add_column(heading, justify="right")
    for process, private, resident in rows[1:]:  # the first one, `fedmr run`, has read the file and made the copy
        numbers = int(private) / 1e6, int(resident) / 1e6, int(private) / images.nbytes
        table.add_row(process, *(f"{number:.{digits}f}" for number, digits in zip(numbers, (1, 0, 3), strict=True)))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
