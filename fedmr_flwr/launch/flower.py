"""Flower's own commands: handing a run over, following it, and asking how it ended."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import EngineError
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs.folder import RunFolder

# `flwr list` may fail on a busy machine; that must not end a long run.
_ATTEMPTS = 3
# Between looks whether the run is still there; the first comes after it has had time to appear.
_LOOK_SECONDS = 15.0
_FAILED = "Simulation failed with exception: "

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "PYTHONUNBUFFERED": "1",
    # How often Flower looks for work for a new process: every second if nobody says otherwise.
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
}


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment for Flower's own processes, with some variables set."""
    # Flower starts its parts by name.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return os.environ | QUIET | {"PATH": path} | variables


class Connection:
    """A SuperLink that runs are handed over to.

    Args:
        name: of the SuperLink in Flower's configuration.
        env: of the commands.
    """

    def __init__(self, name: str, env: Mapping[str, str]) -> None:
        self._name = name
        self.env = env

    def submit(self, settings: Settings, out: RunFolder, federation_config: Mapping[str, Any] | None = None) -> str:
        """Hand the app and the run's configuration over with `flwr run`; return Flower's identifier of the run."""
        # What a run that goes on may have changed since its configuration was written.
        changed = [f"engine={settings.engine}", f"run-dir={json.dumps(str(out.path))}"]
        if superlink := settings.deployment.superlink:
            changed.append(f"deployment.superlink={superlink}")
        text = f"conf = {json.dumps(str(out.config))}\nset = {json.dumps(shlex.join(changed))}\n"
        extra = [f"{name}={value}" for name, value in (federation_config or {}).items()]
        with tempfile.TemporaryDirectory(prefix="fedmr-submit-") as folder:
            path = Path(folder, "run.toml")
            path.write_text(text, encoding="utf-8")
            answer = self.command(
                "run", str(app_folder()), self._name, "--run-config", str(path),
                *(["--federation-config", " ".join(extra)] if extra else []),
            )  # fmt: skip
        return str(answer["run-id"])

    def follow(
        self,
        run_id: str,
        out: RunFolder,
        display: Display,
        gone: Callable[[], bool],
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        """Show the rounds as they are written, until Flower says that the run has ended.

        Args:
            run_id: Flower's.
            out: the run's folder.
            display: shows the rounds.
            gone: tells from time to time whether the server has ended without a word.
            look_seconds: between such looks.

        Raises:
            EngineError: the run was not completed.
        """
        before: int | None = None
        waiting = None
        seen, looked, lost = 0, time.monotonic(), False
        while True:
            manifest = out.read_manifest()
            status = manifest.get("status")
            if before is None and status in ("running", "completed"):  # until then old rows may be there
                before = _rounds_before(out, display)
            if manifest.get("waiting") not in (None, waiting):
                display.say(manifest["waiting"])
            waiting = manifest.get("waiting")
            if before is not None:
                rows, seen = out.read_new_rows(seen)
                for row in rows:
                    if row["round"] > before:
                        display.show(row)
            ended = status not in ("starting", "running")
            if not ended and time.monotonic() - looked > look_seconds:
                looked, lost = time.monotonic(), gone()
            if ended or lost:
                said, details = self.status(run_id)
                if said == "finished:completed":
                    return
                if said.startswith("finished"):
                    reason = out.read_manifest().get("error")
                    raise EngineError(reason or f"{details.removeprefix(_FAILED) or said}; see Flower's log")
            if lost:
                raise EngineError("Flower's server is gone, perhaps killed for want of memory; see Flower's log")
            time.sleep(0.3)

    def status(self, run_id: str) -> tuple[str, str]:
        """Return what Flower says of a run, and details, perhaps empty."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                (entry,) = self.command("list", self._name, "--run-id", run_id)["runs"]
                break
            except EngineError:
                if attempt == _ATTEMPTS:
                    raise
        return str(entry["status"]), str(entry.get("status-details") or "")

    def command(self, *arguments: str) -> dict[str, Any]:
        """Run a `flwr` command and return what it says as JSON.

        Raises:
            EngineError: it failed.
        """
        done = subprocess.run(
            ["flwr", *arguments, "--format", "json"],
            env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        try:
            answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            answer = {"success": False, "error-message": f"{done.stdout} {done.stderr}"}
        if not answer.get("success"):
            reason = " ".join(str(answer.get("error-message")).split())
            raise EngineError(f"`flwr {shlex.join(arguments[:1])}` failed: {reason}")
        return answer


def app_folder() -> Path:
    """Return the folder of the Flower app: the repository, or the copy of its thin files in the package."""
    package = Path(__file__).parents[1]
    return package / "app" if (package / "app").exists() else package.parent


def _rounds_before(out: RunFolder, display: Display) -> int:
    """Return how many rounds earlier servers have done, and say so if there were any."""
    resumed = out.read_manifest().get("resumed")
    if not resumed:
        return 0
    display.show_resumed(resumed[-1])
    return int(resumed[-1]["after-round"])
