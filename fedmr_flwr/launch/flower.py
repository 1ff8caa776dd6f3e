"""Submitting a run to Flower, following it, and checking how it ended."""

import json
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fedmr_flwr.config.paths import app_folder
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import EngineError
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs.folder import Place, RunFolder
from fedmr_flwr.server.experiment import check, create_folder
from fedmr_flwr.wire.flower.commands import Connection, hash_app
from fedmr_flwr.wire.flower.reasons import reason

# Attempts of `flwr list`, which may fail on a busy machine; that must not end a long run.
_ATTEMPTS = 3
# Seconds between checks of the run's files.
_POLL_SECONDS = 0.3
# Seconds between the end of a run in its files, or an answer, and a question to Flower: the server's process ends a
# little later, and a question takes a second of a processor.
_END_SECONDS = 1.0
_COMPLETED, _FINISHED = "finished:completed", "finished"
_FAILED = "Simulation failed with exception: "


@contextmanager
def launching(settings: Settings, display: Display, prepared: RunFolder | None) -> Iterator[RunFolder]:
    """Check a run and create its folder, which is locked against other launchers inside the block.

    Args:
        settings: of the run, with its folder.
        display: shows what the check says.
        prepared: the run's folder, if it exists.

    Raises:
        FedmrError: the configuration or the data is wrong, or the folder cannot be used.
    """
    with ExitStack() as stack:
        if prepared is not None:
            stack.enter_context(prepared.launching())
        # Also for a prepared folder, because the data may have changed since.
        for line in check(settings):  # before anything is written
            display.print(line)
        if prepared is None:
            prepared = create_folder(settings)
            stack.enter_context(prepared.launching())
        yield prepared


def submit(
    connection: Connection, settings: Settings, out: RunFolder, simulation: Mapping[str, Any] | None = None
) -> str:
    """Submit the app and the run's configuration with `flwr run`.

    Args:
        connection: to the SuperLink.
        settings: of the run.
        out: the run's folder.
        simulation: the settings of a simulation, for `--federation-config`.

    Returns:
        Flower's identifier of the run.

    Raises:
        EngineError: the SuperLink does not accept it.
    """
    # These may differ from the written configuration when a run is resumed.
    changed = [f"engine={settings.engine}", f"run-dir={json.dumps(str(out.path))}"]
    changed += [f"deployment.superlink={settings.deployment.superlink}"] if settings.deployment.superlink else []
    text = f"conf = {json.dumps(str(out.config))}\nset = {json.dumps(shlex.join(changed))}\n"
    extra = [f"{name}={value}" for name, value in (simulation or {}).items()]
    with tempfile.TemporaryDirectory(prefix="fedmr-submit-") as folder:
        path = Path(folder, "run.toml")
        path.write_text(text, encoding="utf-8")
        # In a file, because `--run-config` on the command line cannot quote all paths.
        output = connection.command(
            "run", str(_copy_app(Path(folder, "app"))), connection.name, "--run-config", str(path),
            *(["--federation-config", " ".join(extra)] if extra else []),
        )  # fmt: skip
    return str(output["run-id"])


def app_sha256() -> str:
    """Return the SHA-256 of the app that `submit` sends, which a node may pin.

    Raises:
        EngineError: it cannot be built.
    """
    with tempfile.TemporaryDirectory(prefix="fedmr-app-") as folder:
        return hash_app(_copy_app(Path(folder, "app")))


def follow(
    connection: Connection,
    run_id: str,
    out: RunFolder,
    display: Display,
    server_died: Callable[[], bool],
    log: Callable[[], str],
    check_seconds: float = 15.0,
) -> None:
    """Show the rounds as they are written, until Flower reports that the run has ended.

    Args:
        connection: to the SuperLink.
        run_id: Flower's identifier of the run.
        out: the run's folder.
        display: shows the rounds.
        server_died: returns whether the server has ended without recording the end of the run.
        log: returns what the server wrote, after it has been written to the run's flower.log.
        check_seconds: between calls of it; the first call is this long after the start.

    Raises:
        EngineError: the run failed.
    """
    rows = _NewRows(out, display)
    checked = time.monotonic()
    while True:
        # The status before the rows, so that no row is missed that was written before the run ended.
        status = out.status
        rows.show(status)
        ended = status not in ("starting", "running")
        died = False
        if ended:
            time.sleep(_END_SECONDS)
        elif time.monotonic() - checked > check_seconds:
            checked, died = time.monotonic(), server_died()
        if (ended or died) and _is_completed(connection, run_id, out, log):
            return
        if died:
            raise _failure(out, log, "Flower's server died, perhaps out of memory")
        time.sleep(_POLL_SECONDS)


def status(connection: Connection, run_id: str) -> tuple[str, str]:
    """Return Flower's status of a run, and its details, which may be empty.

    Raises:
        EngineError: the SuperLink does not reply.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            (entry,) = connection.command("list", connection.name, "--run-id", run_id)["runs"]
            break
        except EngineError:
            if attempt == _ATTEMPTS:
                raise
    return str(entry["status"]), str(entry.get("status-details") or "")


def is_finished(connection: Connection, run_id: str) -> bool:
    """Return whether Flower reports that a run has ended, completed or not."""
    return status(connection, run_id)[0].startswith(_FINISHED)


def _copy_app(to: Path) -> Path:
    """Copy the app's own files; whatever else lies beside them in a repository must not travel to the nodes."""
    source = app_folder()
    to.mkdir()
    for path in (*source.glob("*.py"), source / "LICENSE"):
        shutil.copy(path, to)
    if source / "fedmr_flwr" in Path(__file__).parents:  # a repository; an installed package is on the nodes, too
        shutil.copytree(source / "fedmr_flwr", to / "fedmr_flwr", ignore=shutil.ignore_patterns("__pycache__"))
    # Its patterns are those of a repository, and Flower refuses one that matches nothing.
    text = (source / "pyproject.toml").read_text(encoding="utf-8")
    (to / "pyproject.toml").write_text(re.sub(r"^fab-include = .*\n", "", text, flags=re.MULTILINE), encoding="utf-8")
    return to


def _is_completed(connection: Connection, run_id: str, out: RunFolder, log: Callable[[], str]) -> bool:
    """Return whether a run is completed; False if Flower does not report its end yet.

    Raises:
        EngineError: it failed.
    """
    found, details = status(connection, run_id)
    # Flower's status and not that of `flwr run --stream`, which ends with 0 even if the run failed.
    if found.startswith(_FINISHED) and found != _COMPLETED:
        raise _failure(out, log, details.removeprefix(_FAILED) or found)
    return found == _COMPLETED


def _failure(out: RunFolder, log: Callable[[], str], what: str) -> EngineError:
    """Return the error of a failed run, with the reason from its server's log."""
    text = log()  # also if the manifest has the reason, because then the rest is in flower.log
    known, why = out.read_manifest().get("error"), reason(text)
    return EngineError(known or f"{what.rstrip('.')}{': ' * bool(why)}{why}; see {out.log}")


class _NewRows:
    """Shows the rows that a run's server writes, each once; not those of earlier servers."""

    def __init__(self, out: RunFolder, display: Display) -> None:
        self._out, self._display = out, display
        self._seen = Place()
        self._resumed_after: int | None = None  # None until the server has removed the rows of repeated rounds
        self._waiting: str | None = None

    def show(self, status: str) -> None:
        """Show new rounds, and a new line about missing clients, since the last call."""
        if self._resumed_after is None and status in ("running", "completed"):
            self._resumed_after = self._show_resumed()
        waiting = self._out.read_manifest().get("waiting")
        if waiting not in (None, self._waiting):
            self._display.print(waiting)
        self._waiting = waiting
        if self._resumed_after is not None:
            rows, self._seen = self._out.read_new_rows(self._seen)
            for row in rows:
                if row["round"] > self._resumed_after:
                    self._display.show(row)

    def _show_resumed(self) -> int:
        """Return the number of rounds of earlier servers, and show it if there are any."""
        resumed = self._out.read_manifest().get("resumed")
        if not resumed:
            return 0
        self._display.show_resumed(resumed[-1])
        return int(resumed[-1]["after-round"])
