"""The run folder: everything that one run writes, in files that people and programs can read."""

import fcntl
import json
import math
import os
import platform
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fedmr_flwr import config
from fedmr_flwr.config import Settings
from fedmr_flwr.errors import FedmrError, RunFolderError
from fedmr_flwr.runs.files import write_aside, write_tensors, writing

_VERSIONS = ("fedmr-flwr", "flwr", "ray", "torch", "numpy")


def choose(settings: Settings) -> Settings:
    """Give a run its folder, if the configuration names none: a new one under runs/ of the working directory."""
    if settings.run_dir is not None:
        return settings
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{settings.data.name}-{settings.strategy.name}-seed{settings.seed}"
    base = Path("runs").absolute()
    candidates = (base / (name if attempt == 1 else f"{name}-{attempt}") for attempt in range(1, 1000))
    return settings.model_copy(update={"run_dir": next(path for path in candidates if not path.exists())})


def check_free(path: Path) -> None:
    """Insist that a folder can be made or is empty.

    Raises:
        RunFolderError: it holds something, perhaps another run.
    """
    try:
        taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise RunFolderError(f"cannot use the run folder {path}: {error.strerror}") from None
    if taken:
        what = "already holds a run" if (path / "config.yaml").exists() else "is not empty"
        raise RunFolderError(f"{path} {what}; name another folder with run-dir=FOLDER")


class RunFolder:
    """One run on disk.

    Files: config.yaml (resolved), manifest.json (versions, hashes, status), metrics.jsonl (an object per
    round), partition.npz, checkpoints/, model.safetensors (the global model), and pictures.

    Args:
        path: an existing run folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.manifest = path / "manifest.json"
        self.model = path / "model.safetensors"
        self.partition = path / "partition.npz"
        self.checkpoints = path / "checkpoints"
        self.curves = path / "curves.png"
        self.clients = path / "clients.png"
        self.config = path / "config.yaml"
        self._lock = path / ".lock"

    @classmethod
    def create(cls, settings: Settings) -> "RunFolder":
        """Make the folder of a run and write down what is to be run.

        Args:
            settings: with a `run_dir`.

        Raises:
            RunFolderError: the folder holds another run, or cannot be written.
        """
        assert settings.run_dir is not None
        check_free(settings.run_dir)
        folder = cls(settings.run_dir)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            # Mode "x" lets one of two servers that start at the same moment win.
            with folder.config.open("x", encoding="utf-8") as file:
                file.write(config.to_yaml(settings))
        except OSError as error:
            raise RunFolderError(f"cannot write the run folder {folder.path}: {error.strerror}") from None
        folder.note(status="starting", engine=settings.engine, seed=settings.seed, versions=versions())
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Return the folder of an earlier run.

        Raises:
            RunFolderError: there is none.
        """
        folder = cls(path)
        if not folder.config.is_file():
            raise RunFolderError(f"{path} is no run folder: it holds no config.yaml")
        return folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other servers out of the folder inside the block; the lock ends with the process that holds it.

        Raises:
            RunFolderError: another server is using the folder.
        """
        try:
            file = self._lock.open("a+", encoding="utf-8")
        except OSError as error:
            raise RunFolderError(f"cannot write the run folder {self.path}: {error.strerror}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise RunFolderError(
                    f"{self.path} is in use by {file.read() or 'another process'}; wait for it to end or stop it"
                ) from None
            with writing(self._lock):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
            yield

    def note(self, **facts: Any) -> None:
        """Add facts to the manifest; None takes one away."""
        manifest = {name: fact for name, fact in (self.read_manifest() | facts).items() if fact is not None}
        write_aside(self.manifest, (json.dumps(manifest, indent=2) + "\n").encode())

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest's facts; empty if there is none yet."""
        try:
            return dict(json.loads(self.manifest.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}

    @property
    def status(self) -> str:
        """starting, running, completed or failed; empty if nothing was run here."""
        return str(self.read_manifest().get("status", ""))

    def fail(self, error: BaseException) -> None:
        """Write down in the manifest that the run failed, and why, unless it says already how the run ended."""
        if self.status in ("starting", "running"):
            reason = str(error) if isinstance(error, FedmrError) else f"{type(error).__name__}: {error}"
            with suppress(RunFolderError):  # a full disk may be the very reason
                self.note(status="failed", error=reason.removesuffix(": "))

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Append one round to the metrics; a number that is not finite becomes null, as JSON has no such thing."""
        line = json.dumps(_without_nan(row), allow_nan=False) + "\n"
        with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(line)

    def flush_rows(self) -> None:
        """Make the metrics outlive a power cut, as the checkpoints do."""
        with writing(self.metrics), self.metrics.open("a") as file:
            os.fsync(file.fileno())

    def forget_rows_after(self, completed: int) -> None:
        """Drop the metrics of rounds that are to be done again, and a line that was cut off."""
        rows = [row for row in self._read_lines() if row["round"] <= completed]
        if self.metrics.exists():
            write_aside(self.metrics, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def read_rows(self) -> list[dict[str, Any]]:
        """Return the metrics of all rounds written so far."""
        return [_with_nan(row) for row in self._read_lines()]

    def _read_lines(self) -> list[dict[str, Any]]:
        if not self.metrics.exists():
            return []
        # Only whole lines: the server may be writing the last one.
        whole = self.metrics.read_text(encoding="utf-8").rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def save_model(self, tensors: Mapping[str, NDArray[Any]]) -> str:
        """Write the global model.

        Args:
            tensors: its state_dict.

        Returns:
            The SHA-256 of the file.
        """
        return write_tensors(self.model, tensors)


def versions() -> dict[str, str]:
    """Return the versions of what a run's result depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _VERSIONS}


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _without_nan(inner) for name, inner in value.items()}
    return [_without_nan(inner) for inner in value] if isinstance(value, list | tuple) else value


def _with_nan(value: Any) -> Any:
    if value is None:
        return math.nan
    if isinstance(value, dict):
        return {name: _with_nan(inner) for name, inner in value.items()}
    return [_with_nan(inner) for inner in value] if isinstance(value, list) else value
