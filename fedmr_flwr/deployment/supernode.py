"""Flower's SuperNode with shorter waits: `python -m fedmr_flwr.deployment.supernode ARGUMENTS-OF-FLOWER-SUPERNODE`.

Flower's looks every three seconds whether there is a message and every half second whether a reply is ready, and
waits a second and more for a message whose parts are still on their way. It has no setting for any of that.
"""

import time
from functools import partial
from types import SimpleNamespace

from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supernode import start_client_internal as loop
from flwr.supernode.cli import flower_supernode

from fedmr_flwr.engines.superlink_grid import PART_SECONDS

# Of Flower's waits this share is left.
_SHARE = 1 / 6


def main() -> None:
    """Run `flower-supernode`."""
    vars(loop)["time"] = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds * _SHARE))
    vars(loop)["pull_objects"] = partial(pull_objects, initial_backoff=PART_SECONDS)
    flower_supernode()


if __name__ == "__main__":
    main()
