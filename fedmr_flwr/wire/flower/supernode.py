"""Flower's SuperNode with shorter waits: `python -m fedmr_flwr.wire.flower.supernode ARGUMENTS`.

Flower polls every three seconds for a message and every half second for a reply that is ready, and
waits a second and more for a message whose parts are still being uploaded. It has no settings for these.
"""

import time
from types import SimpleNamespace

from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

from fedmr_flwr.wire.flower.parts import pull_soon

# The remaining share of Flower's waits.
_SHARE = 1 / 6


def apply() -> None:
    """Shorten the SuperNode's waits."""
    replaced = vars(start_client_internal)
    replaced["time"] = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds * _SHARE))
    replaced["pull_objects"] = pull_soon


def main() -> None:
    """Run `flower-supernode`."""
    apply()
    flower_supernode()


if __name__ == "__main__":
    main()
