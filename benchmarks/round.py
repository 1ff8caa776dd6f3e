"""Seconds per round of the engines, compared with a bare PyTorch loop over the same clients.

The setting is conf/fashion-mnist-cnn.yaml; the first round is dropped, evaluation is not counted.

    .venv/bin/python benchmarks/round.py --data-dir FOLDER
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.nn.functional import cross_entropy

from fedmr_flwr import models
from fedmr_flwr.config.loading import load
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.data import datasets, partition_files
from fedmr_flwr.data.base import Indices

CONF = Path(__file__).parent.parent / "conf" / "fashion-mnist-cnn.yaml"


def engine_seconds(engine: str, rounds: int, data_dir: Path, run_dir: Path) -> list[float]:
    """Run the command line; return the seconds of each round but the first."""
    overrides = [f"rounds={rounds}", f"evaluate-every={rounds}", "device=cpu", f"data-dir={data_dir}"]
    command = [Path(sys.executable).parent / "fedmr", "run", CONF, *overrides, f"run-dir={run_dir}"]
    subprocess.run([*command, "--engine", engine], check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["seconds"] for row in rows[1:]]


def bare_seconds(settings: Settings, parts: list[Indices], channels_last: bool) -> list[float]:
    """Train the same clients in a plain single-threaded PyTorch loop, as in a notebook."""
    torch.set_num_threads(1)
    data = datasets.load(settings.data, settings.data_dir, settings.seed)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images, labels = data.prepare(data.train.inputs).contiguous(memory_format=layout), data.train.labels
    seconds = []
    for number in range(1, settings.rounds + 1):
        drawn = stream(settings.seed, "select", number).choice(len(parts), settings.clients_per_round, replace=False)
        start = time.perf_counter()
        for client in drawn:
            x, y = images[parts[client]], labels[parts[client]]
            model = models.build(settings.model.name, data.input_shape, data.classes).to(memory_format=layout)
            optimizer = torch.optim.SGD(model.parameters(), settings.training.lr, settings.training.momentum)
            for _ in range(int(settings.training.local_epochs or 0)):
                order = torch.randperm(len(y))
                for batch in order.split(settings.training.batch_size):
                    optimizer.zero_grad()
                    cross_entropy(model(x[batch]), y[batch]).backward()
                    optimizer.step()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def main(
    data_dir: Annotated[Path, typer.Option(help="Folder of Fashion-MNIST's idx files.")],
    rounds: Annotated[int, typer.Option(help="Rounds, the first of which is dropped.")] = 8,
) -> None:
    """Measure all in turn and print a table."""
    settings = load(CONF, [f"rounds={rounds}", f"data-dir={data_dir}"])
    with tempfile.TemporaryDirectory() as folder:
        measured = {
            "Ray engine": engine_seconds("ray", rounds, data_dir, Path(folder, "ray")),
            "in-process engine": engine_seconds("in-process", rounds, data_dir, Path(folder, "in-process")),
        }
        parts = partition_files.read(Path(folder, "ray", "partition.npz"))
    measured |= {
        "bare loop": bare_seconds(settings, parts, channels_last=False),
        "bare loop, channels last": bare_seconds(settings, parts, channels_last=True),
    }
    bare = np.mean(measured["bare loop"])
    table = Table(
        caption=f"{rounds - 1} rounds, {torch.get_num_threads()} thread per client, torch {torch.__version__}"
    )
    for name in ("", "s/round", "x bare loop", "target"):
        table.add_column(name, justify="left" if not name else "right")
    targets = {"Ray engine": "0.60", "in-process engine": "0.85"}
    for name, seconds in measured.items():
        table.add_row(name, f"{np.mean(seconds):.2f}", f"{np.mean(seconds) / bare:.2f}", targets.get(name, ""))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
