"""Flower's SuperNode, quicker: `python -m fedmr_flwr.deployment.supernode ARGUMENTS-OF-FLOWER-SUPERNODE`.

Flower's looks every three seconds whether there is a message and every half second whether a reply is ready, and
waits a second and more for a message whose parts are still on their way. It has no setting for any of that. Here it
waits less, and its clients are processes of `fedmr_flwr.deployment.superexec`.
"""

import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supernode import start_client_internal as loop
from flwr.supernode.cli import flower_supernode

from fedmr_flwr.wire.grids.superlink import PART_SECONDS

# Not by the module's name: a forked process imports the main module of the one that asked for it, and with it
# `fedmr_flwr` in the version that is installed here, where it should take the one that came with the run.
_SUPEREXEC = (sys.executable, "-c", "from fedmr_flwr.deployment.superexec import main; main()")
# Of Flower's waits this share is left.
_SHARE = 1 / 6


def main() -> None:
    """Run `flower-supernode`."""
    vars(loop)["time"] = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds * _SHARE))
    vars(loop)["subprocess"] = SimpleNamespace(Popen=_popen)
    vars(loop)["pull_objects"] = partial(pull_objects, initial_backoff=PART_SECONDS)
    flower_supernode()


def _popen(command: list[str]) -> subprocess.Popen[bytes]:
    """Start the SuperExec, the only process that a SuperNode starts."""
    name, *arguments = command
    assert name == "flower-superexec"
    return subprocess.Popen([*_SUPEREXEC, *arguments])


if __name__ == "__main__":
    main()
