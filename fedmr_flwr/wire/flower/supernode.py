"""Flower's SuperNode with shorter waits: `python -m fedmr_flwr.wire.flower.supernode ARGUMENTS`.

Flower polls every three seconds for a message and every half second for a reply that is ready, and
waits a second and more for a message whose parts are still being uploaded. It has no settings for these.
"""

import subprocess
import sys
import time
from types import SimpleNamespace

from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

from fedmr_flwr.wire.flower.parts import pull_soon

# Not by the module's name: a forked process imports the main module of its parent, and with it
# `fedmr_flwr` in the version that is installed here instead of the version that was sent with the run.
_SUPEREXEC = (sys.executable, "-c", "from fedmr_flwr.wire.flower.superexec import main; main()")
# The remaining share of Flower's waits.
_SHARE = 1 / 6


def apply() -> None:
    """Shorten the SuperNode's waits, and let it start the SuperExec whose clients are forked."""
    replaced = vars(start_client_internal)
    replaced["time"] = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds * _SHARE))
    replaced["subprocess"] = SimpleNamespace(Popen=_start_superexec)
    replaced["pull_objects"] = pull_soon


def main() -> None:
    """Run `flower-supernode`."""
    apply()
    flower_supernode()


def _start_superexec(command: list[str]) -> subprocess.Popen[bytes]:
    """Start the SuperExec, the only process that a SuperNode starts."""
    name, *arguments = command
    assert name == "flower-superexec"
    return subprocess.Popen([*_SUPEREXEC, *arguments])


if __name__ == "__main__":
    main()
