"""The description of a run in its folder, and continuing from a checkpoint."""

from flwr.app import ArrayRecord

from fedmr_flwr import models
from fedmr_flwr.data import partitions
from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.report import plots
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs import checkpoint
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.runs.versions import versions
from fedmr_flwr.server.experiment import Experiment
from fedmr_flwr.server.rounds import Ledger

# The prefix of the ledger's arrays in a checkpoint, beside the strategy's.
LEDGER = "roster."


def write_description(experiment: Experiment, out: RunFolder) -> None:
    """Write the description of a run to its folder; for a resumed run, check that it is the same.

    Raises:
        RunFolderError: a resumed run has another configuration, other data or another partition.
    """
    settings = experiment.settings
    # Everything that the result depends on; rounds, engine, device and timeouts may change when a run is resumed.
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
        "guard": settings.guard,
        "min-good-replies": settings.min_good_replies,
        "precision": settings.precision,
        "privacy": settings.privacy.model_dump(by_alias=True),
    }
    if experiment.parts is not None:
        facts["partition-sha256"] = partitions.hash_partition(experiment.parts)
    before = out.read_manifest()
    for name, fact in facts.items():
        if before.get(name, fact) != fact:
            raise RunFolderError(
                f"{out.path} was started with {name} = {before[name]}, but now it is {fact}; restore the earlier "
                "value, or start a new run"
            )
    out.note(
        title=experiment.title(),
        engine=settings.engine,
        device=str(experiment.device),
        units=[unit.name for unit in experiment.units],
        **facts,
    )
    if experiment.parts is not None:
        # Written once, because computing it takes seconds in every client's process; and people can look at it.
        partitions.save(experiment.parts, out.partition)
        counts = partitions.class_counts(experiment.dataset, experiment.parts)
        plots.clients(counts, experiment.title(), out.clients)


def resume(experiment: Experiment, ledger: Ledger, out: RunFolder, display: Display) -> tuple[int, ArrayRecord]:
    """Restore strategy and ledger from the latest checkpoint, if there is one; return its round and global model."""
    found, problems = checkpoint.latest(out.checkpoints)
    done = found.round if found else 0
    # Damaged checkpoints of later rounds would otherwise count among the latest, which are kept.
    checkpoint.forget_after(out.checkpoints, done)
    out.forget_rows_after(done)
    if found is None:
        return 0, experiment.arrays
    of_ledger = {name for name in found.state if name.startswith(LEDGER)}
    ledger.restore({name.removeprefix(LEDGER): found.state[name] for name in of_ledger})
    experiment.strategy.restore({name: array for name, array in found.state.items() if name not in of_ledger})
    resumed = {"after-round": done, "problems": problems, "versions": versions()}
    out.note(resumed=[*out.read_manifest().get("resumed", []), resumed])
    display.show_resumed(resumed)
    return done, experiment.codec.encode(found.model)
