"""Flower around a ServerApp: how it logs why a run failed, and how it waits for replies."""

import logging

from flwr.superlink.grid import http_grid

from fedmr_flwr.errors import FedmrError
from fedmr_flwr.wire.flower.parts import pull_or_give_up


def apply() -> None:
    """Replace how the Grid that Flower gives a ServerApp waits for parts of a reply; it has no setting for this."""
    vars(http_grid)["pull_objects"] = pull_or_give_up


def log_errors_in_one_line() -> None:
    """Let Flower log errors of this project, which are one line each, without the traceback that it adds."""
    logging.getLogger("flwr").addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, FedmrError):
        record.msg, record.args, record.exc_info = str(error), (), None
    return True
