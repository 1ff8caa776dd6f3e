"""The server's side of a run, from its settings to its results."""

from contextlib import ExitStack

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
from fedmr_flwr.server import client_evaluation as clients
from fedmr_flwr.server import rounds as loop
from fedmr_flwr.server.experiment import Experiment
from fedmr_flwr.server.resuming import ROSTER, describe, resume
from fedmr_flwr.training.devices import is_out_of_memory
from fedmr_flwr.wire.grids.roster import RosterGrid

# In which all clients of a simulation must have come.
_SIMULATION_SECONDS = 120.0


def run(settings: Settings, grid: Grid, display: Display, prepared: RunFolder | None = None) -> RunFolder:
    """Run a federation from start to end, or go on from its latest checkpoint, and write its results.

    Args:
        settings: what to run, with its folder.
        grid: carries the messages.
        display: shows the rounds.
        prepared: the run's folder, if it is made already, perhaps by an earlier server that was stopped.

    Returns:
        The run folder, complete.

    Raises:
        FedmrError: the configuration, the data or the federation is at fault.
    """
    out = None
    with ExitStack() as lock:
        try:
            if prepared is not None:
                out = _locked(prepared, lock)
                out.note(status="starting", error=None)
            else:
                assert settings.run_dir is not None
                folder.check_free(settings.run_dir)
            federation = Experiment(settings)
            out = out or _locked(RunFolder.create(settings), lock)
            arrays = _train(federation, grid, out, display)
            digest = out.save_model(federation.layout.unpack(federation.codec.decode(arrays).on_host()))
            plots.draw(out)
            out.note(status="completed", rounds=len(out.read_rows()), **{"model-sha256": digest})
        except (Exception, KeyboardInterrupt) as error:
            if out is not None:
                out.fail(error)
            raise
    return out


def _locked(out: RunFolder, lock: ExitStack) -> RunFolder:
    lock.enter_context(out.locked())
    return out


def _train(federation: Experiment, grid: Grid, out: RunFolder, display: Display) -> ArrayRecord:
    """Write down what is known beforehand, then go through the rounds that are left."""
    settings, strategy = federation.settings, federation.strategy
    describe(federation, out)
    completed, arrays, roster_state = resume(federation, out, display)
    out.note(status="running")

    def report(row: loop.Row, arrays: ArrayRecord, stops: bool) -> None:
        out.add_row(row)
        # The round in which a run stops is bad, so nothing changed in it, and it is to be done again.
        done = row["round"] - stops
        if stops or done % settings.checkpoint_every == 0 or done == settings.rounds:
            out.flush_rows()
            state = {**strategy.state(), **{ROSTER + name: array for name, array in roster.state().items()}}
            checkpoint.save(out.checkpoints, Checkpoint(done, federation.codec.decode(arrays).on_host(), state))
        display.show(row)

    spec = DataSpec.of(federation.dataset)
    config = train_config(settings, federation.layout, spec, out.identifier())
    query = ConfigRecord({**config, DIGEST: federation.digest})
    afar = settings.engine == "deployment"
    roster = RosterGrid(
        grid,
        settings.clients,
        min_clients=settings.min_clients or settings.clients if afar else None,
        patience=settings.join_timeout if afar else _SIMULATION_SECONDS,
        query=query,
        min_good_replies=settings.min_good_replies,
        guard=settings.guard,
        say=lambda line: out.note(waiting=line or None),
    )
    if roster_state:
        roster.restore(roster_state)
    try:
        arrays = loop.run(settings, strategy, roster, arrays, config, federation.evaluate, report, completed)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"device {federation.device}: there is no memory to average and to score models; set device=cpu, or with "
            "engine=gpu lower clients-per-round"
        ) from None
    if settings.evaluate_clients:
        scores = clients.accuracies(roster, arrays, config, settings.clients_per_round, settings.round_timeout)
        out.note(**{"client-accuracy": clients.summary(scores)})
    return arrays
