"""Flower's SuperNode with shorter waits, and with one app: `python -m fedmr_flwr.wire.flower.supernode ARGUMENTS`.

Flower polls every three seconds for a message and every half second for a reply that is ready, and
waits a second and more for a message whose parts are still being uploaded. It has no settings for these. It runs
whatever app a server sends, unless the server proves who has signed it.
"""

import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from flwr.app import Error
from flwr.common.constant import ErrorCode
from flwr.supercore.fab import Fab
from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

from fedmr_flwr.wire.flower.commands import PIN
from fedmr_flwr.wire.flower.parts import pull_soon

# The remaining share of Flower's waits.
_SHARE = 1 / 6


def apply() -> None:
    """Shorten the SuperNode's waits, and end it with its first thread that dies."""
    # Of a node that no longer says that it is there, nobody would know why.
    threading.excepthook = _end
    replaced = vars(start_client_internal)
    replaced["time"] = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds * _SHARE))
    replaced["pull_objects"] = pull_soon


def pin(sha256: str) -> None:
    """Let the SuperNode run one app alone, and reply to the messages of any other one with an error.

    Args:
        sha256: of the app, in hexadecimal digits.
    """
    replaced = vars(start_client_internal)
    pull = replaced["_pull_and_store_message"]

    def pull_of_pinned(*, get_fab: Callable[[str, int], Fab], **others: Any) -> int | None:
        def get_unsigned(fab_hash: str, run_id: int) -> Fab:
            fab = get_fab(fab_hash, run_id)
            # Flower asks for a signature before it calls what is replaced below.
            fab.verifications["valid_license"] = "not needed"
            return fab

        found: int | None = pull(**{**others, "get_fab": get_unsigned, "trusted_entities": {PIN: sha256}})
        return found

    replaced["_pull_and_store_message"] = pull_of_pinned
    # Of the bytes that came, not of what the server says of them.
    replaced["_verify_fab"] = lambda fab, _: hashlib.sha256(fab.content).hexdigest() == sha256
    reason = "the app of this run is not the one that the node allows; see app-sha256 in its node.yaml"
    replaced["FAB_VERIFICATION_ERROR"] = Error(ErrorCode.INVALID_FAB, reason)


def _end(died: threading.ExceptHookArgs) -> None:
    if died.exc_type is not SystemExit:
        threading.__excepthook__(died)
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run `flower-supernode`; `--app-sha256 HASH` before its own arguments allows one app alone."""
    apply()
    if sys.argv[1:2] == [PIN]:
        pin(sys.argv[2])
        del sys.argv[1:3]
    flower_supernode()


if __name__ == "__main__":
    main()
