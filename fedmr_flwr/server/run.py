"""The server's side of a run, from its settings to its results."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid

from fedmr_flwr.client.app import DIGEST, train_config
from fedmr_flwr.client.sites import DataSpec
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import DeviceError
from fedmr_flwr.report import plots
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs import checkpoint, folder
from fedmr_flwr.runs.checkpoint import Checkpoint
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server import client_evaluation, rounds
from fedmr_flwr.server.experiment import Experiment, create_folder
from fedmr_flwr.server.resuming import LEDGER, resume, write_description
from fedmr_flwr.training.devices import is_out_of_memory
from fedmr_flwr.wire.grids.roster import RosterGrid

# In which all clients of a simulation must have come.
_SIMULATION_SECONDS = 120.0


def run(settings: Settings, grid: Grid, display: Display, prepared: RunFolder | None = None) -> RunFolder:
    """Run an experiment from start to end, or from its latest checkpoint, and write its results.

    Args:
        settings: what to run, with its folder.
        grid: carries the messages.
        display: shows the rounds.
        prepared: the run's folder, if it is made already, perhaps by an earlier server that was stopped.

    Returns:
        The run folder, complete.

    Raises:
        FedmrError: the configuration, the data or the clients are at fault.
    """
    with ExitStack() as stack:
        out = prepared
        if out is not None:
            stack.enter_context(_serving(out))
        else:
            assert settings.run_dir is not None
            folder.check_free(settings.run_dir)
        experiment = Experiment(settings)
        if out is None:
            out = create_folder(settings)
            stack.enter_context(_serving(out))
        arrays = _train(experiment, grid, out, display)
        digest = out.save_model(experiment.layout.unpack(experiment.codec.decode(arrays).on_host()))
        plots.draw(out)
        out.note(status="completed", rounds=len(out.read_rows()), **{"model-sha256": digest})
    return out


@contextmanager
def _serving(out: RunFolder) -> Iterator[None]:
    """Keep other servers out of a run's folder inside the block, and write down why the run failed.

    Raises:
        RunFolderError: another process is using the folder.
    """
    with out.locked():
        try:
            out.note(status="starting", error=None)
            yield
        except (Exception, KeyboardInterrupt) as error:
            out.fail(error)
            raise


def _train(experiment: Experiment, grid: Grid, out: RunFolder, display: Display) -> ArrayRecord:
    """Write down what is known beforehand, then go through the rounds that are left."""
    settings, strategy = experiment.settings, experiment.strategy
    write_description(experiment, out)
    ledger = rounds.Ledger(settings.clients)
    completed, arrays = resume(experiment, ledger, out, display)
    out.note(status="running")

    def report(row: rounds.Row, arrays: ArrayRecord, stops: bool) -> None:
        out.add_row(row)
        # The round in which a run stops is bad, so nothing changed in it, and it is to be done again.
        done = row["round"] - stops
        if stops or done % settings.checkpoint_every == 0 or done == settings.rounds:
            out.flush_rows()
            state = {**strategy.save(), **{LEDGER + name: array for name, array in ledger.save().items()}}
            checkpoint.save(out.checkpoints, Checkpoint(done, experiment.codec.decode(arrays).on_host(), state))
        display.show(row)

    spec = DataSpec.of(experiment.dataset)
    config = train_config(settings, experiment.layout, spec, out.identifier())
    query = ConfigRecord({**config, DIGEST: experiment.digest})
    remote = settings.engine == "deployment"
    roster = RosterGrid(
        grid,
        settings.clients,
        min_clients=settings.deployment.min_clients or settings.clients if remote else None,
        patience=settings.deployment.join_timeout if remote else _SIMULATION_SECONDS,
        query=query,
        report=lambda line: out.note(waiting=line or None),
    )
    try:
        arrays = rounds.run(
            settings, strategy, roster, ledger, arrays, config, experiment.evaluate, report, completed
        )
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"device {experiment.device}: there is no memory to average and to score models; set device=cpu, or with "
            "engine=gpu lower clients-per-round"
        ) from None
    if settings.evaluate_clients:
        scores = client_evaluation.accuracies(
            roster, arrays, config, settings.clients_per_round, settings.round_timeout
        )
        out.note(**{"client-accuracy": client_evaluation.summary(scores)})
    return arrays
