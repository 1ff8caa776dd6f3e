"""Runs that a comparison was asked for before: whether they are there, the same, and complete."""

from collections.abc import Container, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedmr_flwr.config.data import Data
from fedmr_flwr.config.identity import differences, identity, own_code
from fedmr_flwr.config.loading import load_recorded
from fedmr_flwr.config.partition import Partition
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.runs import folder
from fedmr_flwr.runs.folder import RunFolder

Metrics = Sequence[Mapping[str, Any]]


def find_earlier_run(settings: Settings) -> RunFolder | None:
    """Return the folder of a run that was started earlier, None if it was not.

    Raises:
        RunFolderError: the folder contains something else, or a damaged run.
    """
    assert settings.run_dir is not None
    if (settings.run_dir / "config.yaml").exists():
        return RunFolder.open(settings.run_dir)
    folder.check_free(settings.run_dir, "--out FOLDER")
    return None


def is_complete(run: RunFolder, settings: Settings) -> bool:
    """Return whether an earlier run has all rounds of some settings, or ended early by `stop`.

    It may have been asked for more rounds by now.
    """
    # The manifest has the number of rounds only since they were complete; a run that was then continued and stopped
    # has all of them, and others. With fewer rows, something was removed.
    manifest = run.read_manifest()
    reached = manifest.get("rounds", 0) >= settings.rounds or "stopped" in manifest
    return reached and (run.status == "completed" or len(run.read_rows()) >= settings.rounds)


def check_same(settings: Settings, but: Container[str] = ()) -> None:
    """Check that an earlier run in the folder has the same settings, data, partition and code.

    Args:
        settings: with the folder.
        but: settings that may differ.

    Raises:
        RunFolderError: it has not, or the folder contains something else.
    """
    if (out := find_earlier_run(settings)) is None:
        return
    manifest = out.read_manifest()
    now = identity(settings) | {"own-code": own_code(settings)}
    # The files may have changed under the same name. A run that was not started yet has no hashes.
    if "data-sha256" in manifest:
        digests = _digests(settings.data, settings.data_dir, settings.clients, settings.partition, settings.seed)
        # In a deployment, clients may have data that only they know.
        now |= {name: digest for name, digest in digests.items() if name in manifest}
    # What was not evaluated then would be missing from the tables.
    now["evaluation"] = settings.evaluation.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    earlier = load_recorded(out.config)
    evaluated = earlier.evaluation.model_dump(mode="json", by_alias=True)
    for name, old, new in differences({**manifest, **identity(earlier), "evaluation": evaluated}, now):
        if name not in but:
            raise RunFolderError(
                f"{out.path} was started with {name} = {old}, but now it is {new}; choose another folder with --out"
            )


def rows_of(run: RunFolder, rounds: int | None = None) -> Metrics:
    """Return the metrics of a complete run.

    Args:
        run: its folder.
        rounds: the number of its first rounds that are meant; None for all.

    Raises:
        RunFolderError: they are damaged.
    """
    rows = run.read_rows()[:rounds]
    rounds = rounds or run.read_manifest().get("rounds")
    # A complete run has all rows; with fewer, the mean over rounds would be wrong without an error.
    if len(rows) != rounds:
        raise RunFolderError(
            f"{run.metrics} is damaged: it has {len(rows)} of {rounds} rounds; delete {run.path} to train again"
        )
    return rows


# A grid asks for the same ones with every strategy.
@lru_cache(maxsize=256)
def _digests(data: Data, data_dir: Path | None, clients: int, partition: Partition, seed: int) -> dict[str, str]:
    # Imported here, because they load PyTorch, which the help of the command line need not wait for.
    from fedmr_flwr.data import datasets, partition_files, partitions

    dataset = datasets.load(data, data_dir, seed)
    found = {"data-sha256": dataset.digest()}
    if partition.name != partitions.NODES:
        parts = partitions.split(dataset, clients, partition, seed)
        found["partition-sha256"] = partition_files.sha256(parts)
    return found
