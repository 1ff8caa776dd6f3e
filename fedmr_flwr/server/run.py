"""The server of a run, from its settings to its results."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid

from fedmr_flwr.algorithms.multi_model import MultiModel
from fedmr_flwr.client.app import DIGEST, train_config
from fedmr_flwr.client.data_spec import DataSpec
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import DeviceError
from fedmr_flwr.files import write_private
from fedmr_flwr.report import plots, scores, tracking
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs import checkpoint, folder
from fedmr_flwr.runs.bugs import in_one_line
from fedmr_flwr.runs.checkpoint import Checkpoint
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server import rounds
from fedmr_flwr.server.accounts import Row
from fedmr_flwr.server.collapse import Watch
from fedmr_flwr.server.evaluation import Evaluator
from fedmr_flwr.server.experiment import Experiment, create_folder
from fedmr_flwr.server.ledger import Ledger
from fedmr_flwr.server.resuming import LEDGER, resume, write_description
from fedmr_flwr.server.stopping import Stopping
from fedmr_flwr.training.devices import is_out_of_memory
from fedmr_flwr.wire.grids.roster import RosterGrid
from fedmr_flwr.wire.sealing import new_key

# Seconds in which all clients of a simulation must have connected.
_SIMULATION_SECONDS = 120.0


def run(settings: Settings, grid: Grid, display: Display, prepared: RunFolder | None = None) -> RunFolder:
    """Run an experiment from its start or its latest checkpoint to its end, and write its results.

    Args:
        settings: of the run, with its folder.
        grid: sends the messages.
        display: shows the rounds.
        prepared: the run's folder, if it exists, perhaps from an earlier server that was stopped.

    Returns:
        The run folder, complete.

    Raises:
        FedmrError: the configuration, the data or the clients are wrong.
    """
    with ExitStack() as stack:
        out = prepared
        if out is not None:
            stack.enter_context(_serving(out))
        else:
            assert settings.run_dir is not None
            folder.check_free(settings.run_dir)
        # Before the folder is created, so that a wrong configuration leaves nothing behind.
        experiment = Experiment(settings)
        if out is None:
            out = create_folder(settings)
            stack.enter_context(_serving(out))
        arrays = _run_rounds(experiment, grid, out, display)
        # Of a sealed run the server has only the initial model; `fedmr open` makes the trained one where the key is.
        sha256 = None
        if not settings.privacy.sealed:
            sha256 = out.save_model(experiment.state_dict(experiment.codec.decode(arrays)))
        plots.draw(out)
        scores.draw(out)
        # Last, so that a run without all of its results is never called complete.
        out.note(status="completed", rounds=len(out.read_rows()), **{"model-sha256": sha256})
    return out


@contextmanager
def _serving(out: RunFolder) -> Iterator[None]:
    """Lock a run's folder against other servers inside the block, and record a failure.

    Raises:
        RunFolderError: another process is using the folder.
    """
    with out.locked():
        try:
            with in_one_line(out.path):
                out.note(status="starting", error=None)
                yield
        except BaseException as error:
            out.fail(error)
            raise


def _run_rounds(experiment: Experiment, grid: Grid, out: RunFolder, display: Display) -> ArrayRecord:
    """Write the run's description, and run the remaining rounds."""
    settings, strategy = experiment.settings, experiment.strategy
    write_description(experiment, out)
    ledger = Ledger(settings.clients)
    completed, arrays = resume(experiment, ledger, out, display)
    out.note(status="running")
    for line in experiment.notices:
        display.print(line)

    earlier = out.read_rows()
    watch, stopping = Watch(experiment.chance, earlier), Stopping(settings.stop, earlier)

    def report(row: Row, arrays: ArrayRecord, ends: bool) -> None:
        if "problem" not in row and (collapse := watch.look(row, strategy.update_lengths)):
            row["collapse"] = collapse
        out.add_row(row)
        if "problem" in row:  # not a model to continue from: the latest checkpoint is from before
            out.flush_rows()
            display.show(row)
            return
        # A bad round that ends a run has changed nothing, and will be repeated.
        repeats = ends and row.get("bad", False)
        done = row["round"] - repeats
        if not repeats and settings.keeps_models_of(done):
            _keep_models(experiment, arrays, done, out)
        if ends or done % settings.checkpoint_every == 0 or done == settings.rounds:
            # The rows first: a checkpoint must not be newer than the metrics of its rounds.
            out.flush_rows()
            state = {**strategy.save(), **{LEDGER + name: array for name, array in ledger.save().items()}}
            checkpoint.save(out.checkpoints, Checkpoint(done, experiment.codec.decode(arrays).on_host(), state))
        track(row)
        display.show(row)

    spec = DataSpec.of(experiment.dataset)
    config = train_config(settings, experiment.layout, spec, out.identifier())
    if settings.privacy.sealed:
        out.note(**{"data-spec": spec.to_json()})  # `fedmr open` builds the model without the data
        if settings.engine != "deployment" and not out.sealing_key.exists():  # nobody else could have made one
            write_private(out.sealing_key, new_key().encode())
    # Only in the query: one comparison of the data before the first round is enough.
    query = ConfigRecord({**config, DIGEST: experiment.digest})
    remote = settings.engine == "deployment"
    roster = RosterGrid(
        grid,
        settings.clients,
        min_clients=settings.deployment.min_clients or settings.clients if remote else None,
        patience=settings.deployment.join_timeout if remote else _SIMULATION_SECONDS,
        query=query,
        report=lambda line: out.note(waiting=line or None),
        sizes=None if experiment.parts is None else [len(part) for part in experiment.parts],
    )
    evaluator = Evaluator(experiment, out, roster, config)
    with tracking.tracking(settings.track, out, settings, display.print) as track, _out_of_memory_is_said(experiment):
        # It may have been stopped between its last round and its results.
        if not stopping.reason:
            arrays = rounds.run(
                settings, strategy, roster, ledger, arrays, config, evaluator, report, completed, stopping.look
            )
    done = len(out.read_rows())
    stopped = f"after round {done}: {stopping.reason}" if stopping.reason and done < settings.rounds else None
    out.note(stopped=stopped)
    if stopped:
        display.print(f"ended {stopped}")
    return arrays


@contextmanager
def _out_of_memory_is_said(experiment: Experiment) -> Iterator[None]:
    """Turn a lack of memory on the device inside the block into one line."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"device {experiment.device}: out of memory while averaging or scoring models; set device=cpu, or with "
            "engine=gpu lower clients-per-round"
        ) from None


def _keep_models(experiment: Experiment, arrays: ArrayRecord, number: int, out: RunFolder) -> None:
    """Write the global model of a round and, if configured, the model of each slot, to stay."""
    strategy = experiment.strategy
    out.keep_model(experiment.state_dict(experiment.codec.decode(arrays)), number)
    if experiment.settings.keep_models_slots and isinstance(strategy, MultiModel):
        for slot, model in enumerate(strategy.state.models or ()):
            out.keep_model(experiment.state_dict(model), number, slot)
