"""What a run writes down before its first round, and how it continues from a checkpoint."""

from flwr.app import ArrayRecord

from fedmr_flwr import models
from fedmr_flwr.data import partitions
from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.report import plots
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs import checkpoint, folder
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server.experiment import Experiment
from fedmr_flwr.server.rounds import Ledger

# How the names begin of what the ledger keeps, which stands in a checkpoint beside what the strategy keeps.
LEDGER = "roster."


def write_description(experiment: Experiment, out: RunFolder) -> None:
    """Write down what is known before the first round; a run that goes on must find the same.

    Raises:
        RunFolderError: it goes on with another configuration, other data or another division of it.
    """
    settings = experiment.settings
    facts = {
        "clients": settings.clients,
        "clients-per-round": settings.clients_per_round,
        "seed": settings.seed,
        "model": {"name": settings.model.name, "parameters": models.parameter_count(experiment.model)},
        "data": {"name": settings.data.name, "normalisation": settings.data.normalisation},
        "training": settings.training.model_dump(by_alias=True),
        "strategy": settings.strategy.model_dump(mode="json", by_alias=True, exclude_none=True),
        "data-sha256": experiment.digest,
        "wire": settings.wire,
        "precision": settings.precision,
        "privacy": settings.privacy.model_dump(by_alias=True),
    }
    if experiment.parts is not None:
        facts["partition-sha256"] = partitions.hash_partition(experiment.parts)
    before = out.read_manifest()
    for name, fact in facts.items():
        if before.get(name, fact) != fact:
            raise RunFolderError(
                f"{out.path} was begun with {name} = {before[name]}, and now it is {fact}; restore what it was, or "
                "begin a new run"
            )
    out.note(
        title=experiment.title(),
        engine=settings.engine,
        device=str(experiment.device),
        units=[unit.name for unit in experiment.units],
        **facts,
    )
    if experiment.parts is not None:
        partitions.save(experiment.parts, out.partition)
        counts = partitions.class_counts(experiment.dataset, experiment.parts)
        plots.clients(counts, experiment.title(), out.clients)


def resume(experiment: Experiment, ledger: Ledger, out: RunFolder, display: Display) -> tuple[int, ArrayRecord]:
    """Restore strategy and ledger from the latest checkpoint, if there is one; return its round and global model."""
    found, problems = checkpoint.latest(out.checkpoints)
    done = found.round if found else 0
    checkpoint.forget_after(out.checkpoints, done)
    out.forget_rows_after(done)
    if found is None:
        return 0, experiment.arrays
    of_ledger = {name for name in found.state if name.startswith(LEDGER)}
    ledger.restore({name.removeprefix(LEDGER): found.state[name] for name in of_ledger})
    experiment.strategy.restore({name: array for name, array in found.state.items() if name not in of_ledger})
    resumed = {"after-round": done, "problems": problems, "versions": folder.versions()}
    out.note(resumed=[*out.read_manifest().get("resumed", []), resumed])
    display.show_resumed(resumed)
    return done, experiment.codec.encode(found.model)
