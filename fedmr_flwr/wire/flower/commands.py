"""Flower's command line, as far as it is used here."""

import json
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fedmr_flwr.errors import EngineError


class Connection:
    """A SuperLink, as Flower's commands reach it.

    Args:
        name: of the SuperLink in Flower's configuration.
        env: the environment of the commands.
    """

    def __init__(self, name: str, env: Mapping[str, str]) -> None:
        self.name = name
        self.env = env

    def command(self, *arguments: str) -> dict[str, Any]:
        """Run a `flwr` command and return its answer.

        Args:
            arguments: of `flwr`, the SuperLink's name among them.

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


@contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C inside the block: a second one must not leave Flower's processes behind."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
