"""The deployment engine: a run on a SuperLink with nodes on other machines."""

from contextlib import suppress

from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import ConfigError, EngineError, RunFolderError
from fedmr_flwr.files import writing
from fedmr_flwr.launch.flower import follow, is_finished, launching, submit
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.wire.flower.commands import Connection, ignoring_interrupts
from fedmr_flwr.wire.flower.environment import HOME, environment

_CHECK_SECONDS = 5.0


def run(settings: Settings, display: Display, prepared: RunFolder | None = None) -> RunFolder:
    """Run an experiment on a SuperLink, or resume one, from the SuperLink's own machine.

    Args:
        settings: of the run, with its folder and the SuperLink's name.
        display: shows the rounds.
        prepared: the run's folder, if it exists, perhaps from an earlier server that was stopped.

    Returns:
        The run folder, complete.

    Raises:
        FedmrError: the configuration, the data or the clients are wrong, or Flower failed.
    """
    name = settings.deployment.superlink
    if name is None:
        raise ConfigError("engine deployment needs a SuperLink: set it with --superlink NAME")
    connection = Connection(name, environment())
    try:
        connection.command("list", name)
    except EngineError as error:
        raise EngineError(
            f"the SuperLink '{name}' does not reply ({error}); check that `fedmr deploy server` is running "
            f"and that {HOME} has the value that it prints"
        ) from None
    with launching(settings, display, prepared) as out:
        run_id = submit(connection, settings, out)
        try:
            follow(
                connection, run_id, out, display,
                server_died=lambda: _server_died(connection, run_id, out),
                log=lambda: _keep_log(connection, run_id, out),
                check_seconds=_CHECK_SECONDS,
            )  # fmt: skip
        except BaseException:
            _stop(connection, run_id)
            raise
    return out


def _server_died(connection: Connection, run_id: str, out: RunFolder) -> bool:
    """Return whether the ServerApp has ended without recording the end of the run."""
    if out.status == "starting":
        return is_finished(connection, run_id)
    try:
        # The ServerApp holds this lock while it lives; the SuperLink notices its end only after a minute.
        with out.locked():
            return out.status == "running"
    except RunFolderError:
        return False


def _keep_log(connection: Connection, run_id: str, out: RunFolder) -> str:
    """Append the log of a run's server to flower.log in the run folder, and return it."""
    text = connection.log(run_id)
    with writing(out.log), out.log.open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")
    return text


def _stop(connection: Connection, run_id: str) -> None:
    """Stop a run that may still be running."""
    # The SuperLink and its nodes are not ours, keep running, and would continue the run.
    with ignoring_interrupts(), suppress(EngineError):
        connection.command("stop", run_id, connection.name)
