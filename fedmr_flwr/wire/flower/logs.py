"""How Flower logs why a ServerApp or a ClientApp failed."""

import logging

from fedmr_flwr.errors import FedmrError


def log_errors_in_one_line() -> None:
    """Let Flower log errors of this project, which are one line each, without the traceback that it adds."""
    logging.getLogger("flwr").addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, FedmrError):
        record.msg, record.args, record.exc_info = str(error), (), None
    return True
