"""What one layer says about the labels of the client that has trained it: to who receives it, and to the server.

.venv/bin/python benchmarks/label_leak.py

The attacker trains shadow clients with label mixes that it draws, from a model that it knows and on examples of its
own (the test set), and fits a ridge regression from what they have changed in a layer to their mixes. A receiver of
FedMR knows the model that it was dealt itself, not the one that the other client has started from; a server that can
read knows both models. The error is the total variation distance of the estimated mix to the true one, 0 to 1, and
chance is the error of the mix of all clients together.
"""

import io
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from flwr.app import Context, Message, MessageType
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from fedmr_flwr.client.app import client_app
from fedmr_flwr.config.loading import load
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.core.layout import Packed
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.core.units import Unit
from fedmr_flwr.models.packing import pack, unpack
from fedmr_flwr.report.display import Display
from fedmr_flwr.server.experiment import Experiment
from fedmr_flwr.server.run import run
from fedmr_flwr.training.sgd import fit
from fedmr_flwr.training.work import work_of
from fedmr_flwr.wire.grids.in_process import InProcessGrid
from fedmr_flwr.wire.messages import ARRAYS, CONFIG, ROUND

ROUNDS, CLIENTS, DRAWN = 6, 20, 10
SETTINGS = [
    f"rounds={ROUNDS}", f"clients={CLIENTS}", f"clients-per-round={DRAWN}", "partition.name=dirichlet",
    "partition.alpha=0.3", "training.local-epochs=5", "device=cpu", "engine=in-process",
]  # fmt: skip
NOISE = ["clipping-norm=1", "sensitivity=2", "delta=0.00001"]
# Of the ridge regression, as a share of the mean squared length of what it is fitted to.
RIDGE = 0.01
Vectors = NDArray[np.float64]


class Trained(NamedTuple):
    """What a client was sent and what it returned in a round."""

    number: int
    client: int
    sent: Packed
    returned: Packed


def observe(settings: Settings, experiment: Experiment) -> list[Trained]:
    """Run FedMR, and return what all clients have trained."""
    seen = []

    def app(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == MessageType.TRAIN:
            sent, back = (experiment.codec.decode(each.content.array_records[ARRAYS]) for each in (message, reply))
            number = message.content.config_records[CONFIG][ROUND]
            seen.append(Trained(int(str(number)), int(str(context.node_config["partition-id"])), sent, back))
        return reply

    with Display(settings.rounds, Console(file=io.StringIO())) as display:
        run(settings, InProcessGrid(app, settings.clients), display)  # type: ignore[arg-type]
    return seen


def part(model: Packed, unit: Unit) -> Vectors:
    """Return one layer as a vector."""
    return np.concatenate([model.floats[columns] for columns in unit.floats]).astype(np.float64)


def shadows(experiment: Experiment, base: Packed, count: int, seed: int) -> tuple[list[Packed], Vectors]:
    """Train clients with random mixes of labels from a model; return their models and mixes."""
    settings, labels = experiment.settings, experiment.dataset.test.labels.numpy()
    classes, mean = experiment.dataset.classes, len(experiment.dataset.train) // CLIENTS
    models, mixes = [], np.zeros((count, classes))
    for at in range(count):
        rng = stream(seed, "shadow", at)
        wanted = rng.choice(classes, mean, p=rng.dirichlet([0.3] * classes))
        indices = np.array([rng.choice(np.flatnonzero(labels == label)) for label in wanted])
        mixes[at] = np.bincount(labels[indices], minlength=classes) / mean
        unpack(base, experiment.layout, experiment.model)
        examples = experiment.dataset.test.select(indices, torch.device("cpu"))
        fit(experiment.model, experiment.dataset, examples, work_of(settings, 1, 0), rng)
        models.append(pack(experiment.model, experiment.layout))
    return models, mixes


def estimate(known: Sequence[Vectors], mixes: Vectors, seen: Vectors) -> Vectors:
    """Return the mix of labels that a ridge regression on known changes gives for another change."""
    # A change of another length, as noise makes it, is as likely of any direction.
    matrix, one = (np.array([row / (np.linalg.norm(row) or 1) for row in rows]) for rows in (known, [seen]))
    centre = matrix.mean(0)
    products = (matrix - centre) @ (matrix - centre).T
    solved = np.linalg.solve(products + RIDGE * np.trace(products) / len(matrix) * np.eye(len(matrix)),
                             mixes - mixes.mean(0))  # fmt: skip
    found = np.clip(mixes.mean(0) + ((one - centre) @ (matrix - centre).T @ solved)[0], 0, None)
    return np.asarray(found / found.sum())


def errors(experiment: Experiment, seen: list[Trained], count: int, seed: int) -> dict[str, dict[str, float]]:
    """Return the mean errors by attacker and layer."""
    labels, classes = experiment.dataset.train.labels.numpy(), experiment.dataset.classes
    assert experiment.parts is not None
    true = [np.bincount(labels[own], minlength=classes) / len(own) for own in experiment.parts]
    prior = np.bincount(labels, minlength=classes) / len(labels)
    last = [each for each in seen if each.number == ROUNDS]
    victims, receiver = last[1:], last[0]
    found: dict[str, dict[str, float]] = {"chance": {"any": _mean_distance([prior] * len(victims), victims, true)}}
    # The receiver knows what it was sent in that round; the server what each victim was sent.
    own, mixes = shadows(experiment, receiver.sent, count, seed)
    bases = [shadows(experiment, victim.sent, count, seed) for victim in victims]
    for unit in experiment.units:
        base = part(receiver.sent, unit)
        known = [part(model, unit) - base for model in own]
        by_receiver = [estimate(known, mixes, part(victim.returned, unit) - base) for victim in victims]
        by_server = [
            estimate(
                [part(model, unit) - part(victim.sent, unit) for model in models],
                theirs,
                part(victim.returned, unit) - part(victim.sent, unit),
            )
            for victim, (models, theirs) in zip(victims, bases, strict=True)
        ]
        found.setdefault("receiver", {})[unit.name] = _mean_distance(by_receiver, victims, true)
        found.setdefault("server that reads", {})[unit.name] = _mean_distance(by_server, victims, true)
    return found


def _mean_distance(estimates: Sequence[Any], victims: Sequence[Trained], true: Sequence[Any]) -> float:
    distances = [np.abs(one - true[victim.client]).sum() / 2 for one, victim in zip(estimates, victims, strict=True)]
    return float(np.mean(distances))


def main(
    shadow: Annotated[int, typer.Option(help="Shadow clients for each model that the attacker knows.")] = 100,
    seed: Annotated[list[int], typer.Option(help="May be repeated.")] = [0, 1, 2],  # noqa: B006
    epsilon: Annotated[list[float], typer.Option(help="Of privacy.local-dp.")] = [100.0, 1.0],  # noqa: B006
) -> None:
    """Measure and print a table."""
    logging.getLogger("flwr").setLevel(logging.WARNING)  # LocalDpMod logs each use
    kinds = {"no noise": []} | {
        f"local-dp, epsilon {one:g}": [f"privacy.local-dp.{key}" for key in (*NOISE, f"epsilon={one}")]
        for one in epsilon
    }
    table = Table(caption=f"mean of {len(seed)} seeds")
    for column in ("models", "attacker", "layer", "error"):
        table.add_column(column)
    for kind, privacy in kinds.items():
        collected: dict[tuple[str, str], list[float]] = {}
        for one in seed:
            with tempfile.TemporaryDirectory() as folder:
                settings = load("quickstart", [*SETTINGS, *privacy, f"seed={one}", f"run-dir={Path(folder, 'run')}"])
                experiment = Experiment(settings)
                found = errors(experiment, observe(settings, experiment), shadow, one)
            for attacker, layers in found.items():
                for layer, error in layers.items():
                    collected.setdefault((attacker, layer), []).append(error)
        for (attacker, layer), each in collected.items():
            table.add_row(kind, attacker, layer, f"{np.mean(each):.3f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)
