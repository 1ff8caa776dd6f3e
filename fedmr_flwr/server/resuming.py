"""What a run writes down before its first round, and how it continues from a checkpoint."""

from typing import Any

from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedmr_flwr import models
from fedmr_flwr.data import partitions
from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.report import plots
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs import checkpoint, folder
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server.experiment import Experiment

# What the roster keeps stands in a checkpoint beside what the strategy keeps.
ROSTER = "roster."


def describe(federation: Experiment, out: RunFolder) -> None:
    """Write down what is known before the first round; a run that goes on must find the same.

    Raises:
        RunFolderError: it goes on with another configuration, other data or another division of it.
    """
    settings = federation.settings
    facts = {
        "clients": settings.clients,
        "clients-per-round": settings.clients_per_round,
        "seed": settings.seed,
        "model": {"name": settings.model.name, "parameters": models.parameter_count(federation.model)},
        "data": {"name": settings.data.name, "normalisation": settings.data.normalisation},
        "training": settings.training.model_dump(by_alias=True),
        "strategy": settings.strategy.model_dump(mode="json", by_alias=True, exclude_none=True),
        "data-sha256": federation.digest,
        "wire": settings.wire,
        "precision": settings.precision,
        "privacy": settings.privacy.model_dump(by_alias=True),
    }
    if federation.parts is not None:
        facts["partition-sha256"] = partitions.digest(federation.parts)
    before = out.read_manifest()
    for name, fact in facts.items():
        if before.get(name, fact) != fact:
            raise RunFolderError(
                f"{out.path} was begun with {name} = {before[name]}, and now it is {fact}; restore what it was, or "
                "begin a new run"
            )
    out.note(
        title=federation.title(),
        engine=settings.engine,
        device=str(federation.device),
        units=[unit.name for unit in federation.units],
        **facts,
    )
    if federation.parts is not None:
        partitions.save(federation.parts, out.partition)
        counts = partitions.class_counts(federation.dataset, federation.parts)
        plots.clients(counts, federation.title(), out.clients)


def resume(
    federation: Experiment, out: RunFolder, display: Display
) -> tuple[int, ArrayRecord, dict[str, NDArray[Any]]]:
    """Take up the latest checkpoint, if there is one; return its round, its global model and the roster's state."""
    found, problems = checkpoint.latest(out.checkpoints)
    done = found.round if found else 0
    checkpoint.forget_after(out.checkpoints, done)
    out.forget_rows_after(done)
    if found is None:
        return 0, federation.arrays, {}
    rosters = {name.removeprefix(ROSTER): array for name, array in found.state.items() if name.startswith(ROSTER)}
    federation.strategy.restore({k: v for k, v in found.state.items() if not k.startswith(ROSTER)})
    resumed = {"after-round": done, "problems": problems, "versions": folder.versions()}
    out.note(resumed=[*out.read_manifest().get("resumed", []), resumed])
    display.show_resumed(resumed)
    return done, federation.codec.encode([found.model.floats], [found.model.ints]), rosters
