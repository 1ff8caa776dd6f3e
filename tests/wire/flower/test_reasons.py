"""The reason that is found in what Flower and Ray wrote."""

import traceback

import pytest

from fedmr_flwr.wire.flower.reasons import plain, reason


def logged(*errors):
    """What Python writes of exceptions, each raised from the one before."""
    cause = None
    for error in errors:
        try:
            try:
                raise error from cause
            except Exception as raised:
                cause = raised
                raise
        except Exception:
            text = traceback.format_exc()
    return text


RAY = OSError("AF_UNIX path length cannot exceed 107 bytes")


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ("", ""),
        ("one\n\n two \n", "two"),
        ("No INFO was found\n2026-11-28 02:04:20,642 INFO done\n", "No INFO was found"),
        ("killed\n\x1b[92mINFO \x1b[0m:      ControlServicer.ListRuns\n", "killed"),
        ('2026-11-28T02:04:20.642Z INFO [uvicorn.access] 127.0.0.1:345 - "POST /v1/control/list-runs" 200\n', ""),
        (
            "ERROR: [Errno 98] address already in use\nINFO: shutting down\n",
            "ERROR: [Errno 98] address already in use",
        ),
        (logged(RAY), f"OSError: {RAY}"),
        (logged(RAY, RuntimeError("Simulation Runtime crashed."), RuntimeError("Ending.")), f"OSError: {RAY}"),
        # An earlier failure, of a client, that did not end the run.
        (logged(ValueError("client 3")) + "going on\n" + logged(RAY, RuntimeError("Ending.")), f"OSError: {RAY}"),
        ("\x1b[91mERROR \x1b[0m:  it\tis   tired\n", "ERROR : it is tired"),
        ("Traceback (most recent call last):\n", "Traceback (most recent call last):"),
    ],
)
def test_reason_of_a_log(log, found):
    assert reason(log) == found


def test_plain_has_no_colours():
    assert plain("\x1b[92mINFO \x1b[0m: a [b]") == "INFO : a [b]"
