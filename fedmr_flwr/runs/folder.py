"""The run folder: all files of one run, readable for people and programs."""

import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from fedmr_flwr.errors import FedmrError, RunFolderError
from fedmr_flwr.files import locking, reading, write_aside, write_new, write_over, write_tensors, writing
from fedmr_flwr.runs.bugs import in_one_line
from fedmr_flwr.runs.rows import to_line, whole_rows, with_nan
from fedmr_flwr.runs.versions import versions

# What a server of the folder locks, and what a launcher does.
_LOCKS = (".lock", ".launching")
# What plots and tables take apart of the manifest, in which these may be missing.
_FACTS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("strategy", "versions"), lambda fact: isinstance(fact, dict)),
    "title": lambda fact: isinstance(fact, str),
    "units": lambda fact: isinstance(fact, list) and all(isinstance(unit, str) for unit in fact),
}


def check_free(path: Path, option: str = "run-dir=FOLDER") -> None:
    """Check that a folder does not exist or is empty.

    Args:
        path: the folder.
        option: the option for another folder, for the error.

    Raises:
        RunFolderError: it is not empty.
    """
    try:
        taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise RunFolderError(f"cannot use the run folder {path}: {error.strerror}") from None
    if taken:
        raise _taken(path, option)


class Place(NamedTuple):
    """Up to where the metrics of a run were read."""

    file: int = -1  # its inode
    offset: int = 0  # in bytes


class RunFolder:
    """One run on disk.

    Files: config.yaml (complete), manifest.json (versions, hashes, status), metrics.jsonl (an object per
    round), clients.jsonl (an object per client and evaluation), partition.npz, client-tests.npz, checkpoints/,
    client-state/ (the clients' state between rounds, if the algorithm has any), classes.json (the latest scores of
    each class), model.safetensors (the global model), models/ (those of rounds to be kept), sealing.key (of a sealed
    simulation), and pictures.

    Args:
        path: an existing run folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.manifest = path / "manifest.json"
        self.model = path / "model.safetensors"
        self.models = path / "models"
        self.partition = path / "partition.npz"
        self.client_tests = path / "client-tests.npz"
        self.classes = path / "classes.json"
        self.client_rows = path / "clients.jsonl"
        self.checkpoints = path / "checkpoints"
        self.clients = path / "clients.png"
        self.client_state = path / "client-state"
        self.config = path / "config.yaml"
        self.log = path / "flower.log"
        self.sealing_key = path / "sealing.key"

    @classmethod
    def create(cls, path: Path, configuration: str, **facts: Any) -> "RunFolder":
        """Create the folder of a run and write its configuration.

        Args:
            path: a folder that does not exist, or is empty.
            configuration: as YAML, complete.
            **facts: entries of the manifest.

        Raises:
            RunFolderError: the folder contains another run, or cannot be written.
        """
        check_free(path)
        folder = cls(path)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            # Never over another file: of two runs that start at the same moment, one gets the folder.
            write_new(folder.config, configuration.encode())
        except FileExistsError:
            raise _taken(folder.path, "run-dir=FOLDER") from None
        except OSError as error:
            raise RunFolderError(f"cannot write the run folder {folder.path}: {error.strerror}") from None
        try:
            # First, so that where there is no room for them no manifest says that the run is starting.
            with writing(path):
                for name in _LOCKS:
                    (folder.path / name).touch()
            folder.note(status="starting", versions=versions(), **facts)
        except RunFolderError:
            # The same command may be given again.
            for name in (*_LOCKS, folder.config.name):
                (folder.path / name).unlink(missing_ok=True)
            raise
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Return the folder of an earlier run.

        Raises:
            RunFolderError: it is not a run folder.
        """
        folder = cls(path)
        if not folder.config.is_file() or not folder.config.stat().st_size:
            raise RunFolderError(f"{path} is not a run folder: its config.yaml is missing or empty")
        return folder

    def configure(self, configuration: str) -> None:
        """Replace the run's configuration, as YAML."""
        write_aside(self.config, configuration.encode())

    @contextmanager
    def locked(self, launching: bool = False) -> Iterator[None]:
        """Lock the folder against other servers inside the block.

        Args:
            launching: lock it against other launchers, not against the server that this one starts.

        Raises:
            RunFolderError: another process is using the folder, or it cannot be locked.
        """
        # Two locks: the server takes its own some seconds later, in another process, and until then the folder must
        # not be taken.
        with locking(self.path / _LOCKS[launching]):
            yield

    @contextmanager
    def launching(self) -> Iterator[None]:
        """Lock the folder against other launchers inside the block, and record a failure.

        Raises:
            RunFolderError: another process is using the folder.
        """
        with self.locked(launching=True):
            with self.locked():
                self.note(status="starting", error=None, waiting=None)
            try:
                with in_one_line(self.path):
                    yield
            except BaseException as error:
                with suppress(RunFolderError), self.locked():  # a server that is still running has not failed
                    self.fail(error)
                raise

    def note(self, **facts: Any) -> None:
        """Add facts to the manifest; None removes one."""
        manifest = {name: fact for name, fact in (self.read_manifest() | facts).items() if fact is not None}
        write_aside(self.manifest, _manifest(manifest))

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest's facts; empty if it does not exist."""
        if not self.manifest.exists():
            return {}
        with reading(self.manifest, RunFolderError, "delete it to continue without it"):
            facts = json.loads(self.manifest.read_text(encoding="utf-8"))
            if not isinstance(facts, dict):
                raise ValueError("it is not an object")
            if wrong := [name for name, is_right in _FACTS.items() if name in facts and not is_right(facts[name])]:
                raise ValueError(f"'{wrong[0]}' has another type than in any run")
            return facts

    def identifier(self) -> str:
        """Return the run's unique identifier, also valid after it is resumed: 16 hexadecimal digits."""
        if "run-id" not in self.read_manifest():
            self.note(**{"run-id": secrets.token_hex(8)})
        return str(self.read_manifest()["run-id"])

    @property
    def status(self) -> str:
        """One of starting, running, completed or failed; empty if nothing was run."""
        return str(self.read_manifest().get("status", ""))

    def fail(self, error: BaseException) -> None:
        """Record in the manifest that the run failed, and why, unless the run has already ended.

        Only for the holder of the lock: the run of another process must not be marked as failed.
        """
        if self.status in ("starting", "running"):
            reason = str(error) if isinstance(error, FedmrError) else f"{type(error).__name__}: {error}"
            if isinstance(error, KeyboardInterrupt):
                reason = "stopped by Ctrl-C, kill or a closed terminal"
            facts = {"status": "failed", "error": reason.removesuffix(": ")}
            try:
                self.note(**facts)
            except RunFolderError:  # a full disk may be the reason
                with suppress(OSError):
                    write_over(self.manifest, _manifest({**self.read_manifest(), **facts}))

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Append one round to the metrics; numbers that are not finite become null, because JSON has none."""
        with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(to_line(row))

    def flush_rows(self) -> None:
        """Flush the metrics to the disk."""
        # Only with a checkpoint, not in each round: later rows are lost with it in a power cut, and are written
        # again.
        with writing(self.metrics), self.metrics.open("a") as file:
            os.fsync(file.fileno())

    def forget_rows_after(self, completed: int) -> None:
        """Remove the metrics of rounds that will be repeated, and an incomplete last line."""
        rows = [row for row in self._read_lines() if row["round"] <= completed]
        if self.metrics.exists():
            write_aside(self.metrics, "".join(map(to_line, rows)).encode())
        of_clients = [row for row in self._read_lines(self.client_rows) if row["round"] <= completed]
        if self.client_rows.exists():
            write_aside(self.client_rows, "".join(map(to_line, of_clients)).encode())

    def read_rows(self) -> list[dict[str, Any]]:
        """Return the metrics of all rounds written so far."""
        return [with_nan(row) for row in self._read_lines()]

    def read_new_rows(self, seen: Place) -> tuple[list[dict[str, Any]], Place]:
        """Return the rows that were written since a call, and the place up to which they were read.

        A run that is resumed replaces its metrics by those of the rounds that it does not repeat, and all rows of
        the new file are returned.

        Args:
            seen: the place that the last call returned; `Place()` for all rows.
        """
        if not self.metrics.exists():
            return [], Place()
        with self.metrics.open("rb") as file:
            identity = os.fstat(file.fileno()).st_ino
            start = seen.offset if identity == seen.file else 0
            file.seek(start)
            content = file.read()
        rows = [with_nan(row) for row in whole_rows(content, self.metrics)]
        return rows, Place(identity, start + content.rfind(b"\n") + 1)

    def _read_lines(self, path: Path | None = None) -> list[dict[str, Any]]:
        path = path or self.metrics
        return list(whole_rows(path.read_bytes(), path)) if path.exists() else []

    def add_client_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append the scores of clients."""
        with writing(self.client_rows), self.client_rows.open("a", encoding="utf-8") as file:
            file.writelines(map(to_line, rows))

    def read_client_rows(self) -> list[dict[str, Any]]:
        """Return all scores of clients."""
        return [with_nan(row) for row in self._read_lines(self.client_rows)]

    def save_classes(self, number: int, scores: Mapping[str, Any]) -> None:
        """Write the scores of each class after a round, in place of those of an earlier one."""
        write_aside(self.classes, (json.dumps({"round": number, **scores}) + "\n").encode())

    def save_model(self, tensors: Mapping[str, NDArray[Any]]) -> str:
        """Write the global model.

        Args:
            tensors: its state_dict.

        Returns:
            The SHA-256 of the file.
        """
        return write_tensors(self.model, tensors)

    def keep_model(self, tensors: Mapping[str, NDArray[Any]], number: int, slot: int | None = None) -> None:
        """Write a model of some round, to stay beside the final one.

        Args:
            tensors: its state_dict.
            number: the round after which it is the global model, or a slot's.
            slot: of the model; None for the global model.
        """
        path = self.kept_model(number, slot)
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        write_tensors(path, tensors)

    def kept_model(self, number: int, slot: int | None = None) -> Path:
        """Return the path of a model that was kept."""
        return self.models / (f"round-{number:06d}" + ("" if slot is None else f"-slot-{slot:03d}") + ".safetensors")


def _manifest(facts: Mapping[str, Any]) -> bytes:
    return (json.dumps(facts, indent=2) + "\n").encode()


def _taken(path: Path, option: str) -> RunFolderError:
    what = "already contains a run" if (path / "config.yaml").exists() else "is not empty"
    return RunFolderError(f"{path} {what}; choose another folder with {option}")
