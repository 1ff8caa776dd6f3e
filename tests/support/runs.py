"""Runs in this process, to their end or stopped in the middle."""

import io

import pytest
from rich.console import Console

from fedmr_flwr.client import app as client
from fedmr_flwr.launch import engines
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server.run import run as serve


def run(settings, prepared=None, grid=None, output=None):
    """Return the folder of a run; what the user would see is written to `output`."""
    with Display(settings.rounds, Console(file=output or io.StringIO(), width=200)) as display:
        return serve(settings, grid or engines.grid_of(settings), display, prepared)


def digest(out):
    """Return the hash of a run's model."""
    return out.read_manifest()["model-sha256"]


def stopped(settings, monkeypatch, fits):
    """Return the folder of a run that Ctrl+C stops after a number of trainings."""
    fit, calls = client.fit, []

    def counted(*arguments):
        calls.append(1)
        if len(calls) > fits:
            raise KeyboardInterrupt
        return fit(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(client, "fit", counted)
        with pytest.raises(KeyboardInterrupt):
            run(settings)
    return RunFolder(settings.run_dir)
