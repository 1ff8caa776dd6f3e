"""The deployment engine: a run on a SuperLink whose nodes are machines of their own."""

import signal
from contextlib import ExitStack, suppress

from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import ConfigError, EngineError, RunFolderError
from fedmr_flwr.launch.flower import Connection, environment
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs.folder import RunFolder, launching
from fedmr_flwr.server.experiment import Experiment

_LOOK_SECONDS = 3.0


def run(settings: Settings, display: Display, prepared: RunFolder | None = None) -> RunFolder:
    """Run a federation on a SuperLink, or go on with one, from the SuperLink's own machine.

    Args:
        settings: what to run, with its folder and its SuperLink.
        display: shows the rounds.
        prepared: the run's folder, if it is made already, perhaps by an earlier server that was stopped.

    Returns:
        The run folder, complete.

    Raises:
        FedmrError: the configuration, the data or the federation is at fault, or Flower failed.
    """
    superlink = settings.deployment.superlink
    if superlink is None:
        raise ConfigError("engine deployment needs a SuperLink: name it with --superlink NAME")
    connection = Connection(superlink, environment())
    try:
        connection.command("list", superlink)
    except EngineError as error:
        raise EngineError(
            f"the SuperLink '{superlink}' does not answer ({error}); is `fedmr deploy server` running, and FLWR_HOME "
            "what it says?"
        ) from None
    Experiment(settings)  # finds what is wrong before anything is written
    out = None
    with ExitStack() as stack:
        if prepared is not None:
            out = launching(prepared, stack)
        run_id = None
        try:
            out = out or launching(RunFolder.create(settings), stack)
            run_id = connection.submit(settings, out)
            connection.follow(run_id, out, display, lambda: _ended(connection, run_id, out), _LOOK_SECONDS)
        except BaseException as error:
            if run_id:
                _stop(connection, superlink, run_id)
            if out is not None:
                with suppress(RunFolderError), out.locked():  # another's run that goes on there has not failed
                    out.fail(error)
            raise
    return out


def _ended(connection: Connection, run_id: str, out: RunFolder) -> bool:
    """Tell whether the ServerApp has ended without a word."""
    if out.status == "starting":
        return connection.status(run_id)[0].startswith("finished")
    try:
        with out.locked():  # as it does while it lives; the SuperLink misses it only after a minute
            return out.status == "running"
    except RunFolderError:
        return False


def _stop(connection: Connection, superlink: str, run_id: str) -> None:
    """End a run that may still be going on: the SuperLink and its nodes stay, and would go on with it."""
    patience = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EngineError):
        connection.command("stop", run_id, superlink)
    signal.signal(signal.SIGINT, patience)
