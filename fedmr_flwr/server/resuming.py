"""The description of a run in its folder, and continuing from a checkpoint."""

from typing import Any

from flwr.app import ArrayRecord

from fedmr_flwr import models
from fedmr_flwr.config.identity import LENGTH, differences, identity, own_code
from fedmr_flwr.data import partition_files
from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.report import examples
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs import checkpoint
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.runs.versions import versions
from fedmr_flwr.server.experiment import Experiment
from fedmr_flwr.server.ledger import Ledger

# The prefix of the ledger's arrays in a checkpoint, beside the strategy's.
LEDGER = "roster."


def write_description(experiment: Experiment, out: RunFolder) -> None:
    """Write the description of a run to its folder; for a resumed run, check that it is the same.

    Raises:
        RunFolderError: a resumed run has another configuration, other data or another partition.
    """
    settings = experiment.settings
    decisive = {key: value for key, value in identity(settings).items() if key not in LENGTH}
    facts: dict[str, Any] = {
        "own-code": own_code(settings),
        "data-sha256": experiment.digest,
    }
    if experiment.parts is not None:
        facts["partition-sha256"] = partition_files.sha256(experiment.parts)
    if experiment.tests is not None:
        facts["client-tests-sha256"] = partition_files.sha256(experiment.tests)
    before = out.read_manifest()
    # Settings are named as in the configuration, without the "identity" before them.
    for name, old, new in differences({**before, **before.get("identity", {})}, {**decisive, **facts}):
        raise RunFolderError(
            f"{out.path} was started with {name} = {old}, but now it is {new}; restore the earlier value, or start a "
            "new run"
        )
    out.note(
        title=experiment.title(),
        engine=settings.engine,
        device=str(experiment.device),
        units=[unit.name for unit in experiment.units],
        strategy=settings.strategy.model_dump(mode="json", by_alias=True, exclude_none=True),
        model={"name": settings.model.name, "parameters": models.parameter_count(experiment.model)},
        identity=decisive,
        **facts,
    )
    if experiment.parts is not None:
        # Written once, because computing it takes seconds in every client's process; and people can look at it.
        partition_files.save(experiment.parts, out.partition)
        if experiment.tests is not None:
            partition_files.save(experiment.tests, out.client_tests)
        examples.draw_partition(experiment.dataset, experiment.parts, settings, experiment.title(), out.path)


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
