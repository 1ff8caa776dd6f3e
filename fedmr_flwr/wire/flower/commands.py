"""Calls of Flower's command line."""

import hashlib
import json
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedmr_flwr.errors import EngineError
from fedmr_flwr.wire.flower.environment import environment
from fedmr_flwr.wire.flower.reasons import plain

# The first argument of our SuperNode, before the SHA-256 of the only app that it runs.
PIN = "--app-sha256"


class Connection:
    """A SuperLink, reached by Flower's commands.

    Args:
        name: of the SuperLink in Flower's configuration.
        env: the environment of the commands.
    """

    def __init__(self, name: str, env: Mapping[str, str]) -> None:
        self.name = name
        self.env = env

    def command(self, *arguments: str) -> dict[str, Any]:
        """Run a `flwr` command and return its output.

        Args:
            arguments: of `flwr`, including the SuperLink's name.

        Raises:
            EngineError: it failed.
        """
        # By the command line and not Flower's Python functions: only the former is documented and stable.
        done = subprocess.run(
            ["flwr", *arguments, "--format", "json"],
            env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        try:
            # Flower may print other lines before the JSON.
            output: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            output = {"success": False, "error-message": f"{done.stdout} {done.stderr}"}
        if not output.get("success"):
            reason = " ".join(plain(str(output.get("error-message"))).split())
            raise EngineError(f"`flwr {shlex.join(arguments[:1])}` failed: {reason}")
        return output

    def log(self, run_id: str) -> str:
        """Return what a run's processes have written; if it cannot be fetched, the reason for that."""
        done = subprocess.run(
            ["flwr", "log", run_id, self.name, "--show"],
            env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        return plain(done.stdout if done.returncode == 0 else f"{done.stdout}{done.stderr}")


def hash_app(app: Path) -> str:
    """Return the SHA-256 of what `flwr run` sends of an app.

    Args:
        app: its folder.

    Raises:
        EngineError: it cannot be built.
    """
    with tempfile.TemporaryDirectory(prefix="fedmr-app-") as folder:
        done = subprocess.run(
            ["flwr", "build", "--app", str(app)], cwd=folder, env=environment(), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        bundles = [*Path(folder).glob("*.fab")]
        if len(bundles) != 1:
            raise EngineError(f"`flwr build` failed: {' '.join(f'{done.stdout} {done.stderr}'.split())}")
        return hashlib.sha256(bundles[0].read_bytes()).hexdigest()


@contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C inside the block: a second one must not leave Flower's processes behind."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
