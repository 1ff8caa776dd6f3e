"""What Flower logs of a run that failed."""

import logging

from flwr.common.logger import log

from fedmr_flwr.errors import ConfigError
from fedmr_flwr.wire.flower import logs


def logged(error, caplog):
    """Log an error as Flower does when a ServerApp raises one."""
    logger = logging.getLogger("flwr")
    logs.log_errors_in_one_line()
    try:
        with caplog.at_level(logging.ERROR, logger="flwr"):
            logger.addHandler(caplog.handler)
            log(logging.ERROR, "%s raised an exception", "Simulation", exc_info=error)
    finally:
        logger.removeHandler(caplog.handler)
        logger.removeFilter(logs._without_traceback)
    return caplog.text


def test_an_error_of_ours_is_one_line(caplog):
    text = logged(ConfigError("rounds = 0%: too few"), caplog)
    assert "rounds = 0%: too few" in text
    assert "Traceback" not in text


def test_any_other_error_keeps_its_traceback(caplog):
    try:
        raise ValueError("a bug")
    except ValueError as error:
        assert "Traceback" in logged(error, caplog)
