"""The server's side: a run from its settings to its results."""

import os
import shlex
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray
from rich.console import Console

from fedmr_flwr import algorithms, config, engines, models
from fedmr_flwr.algorithms.multi_model import MultiModel
from fedmr_flwr.client import DIGEST, train_config
from fedmr_flwr.config import Precision, Settings
from fedmr_flwr.data import datasets, partitions
from fedmr_flwr.data.base import Examples
from fedmr_flwr.errors import ConfigError, DeviceError, RunFolderError
from fedmr_flwr.layout import Packed
from fedmr_flwr.records import Codec
from fedmr_flwr.roster import RosterGrid
from fedmr_flwr.runs import checkpoint, clients, folder, loop, plots
from fedmr_flwr.runs.checkpoint import Checkpoint
from fedmr_flwr.runs.display import Display, quiet
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.sites import Form
from fedmr_flwr.training import (
    Score,
    arithmetic,
    evaluate,
    is_want_of_memory,
    layout_of,
    pack,
    pick_device,
    place,
    unpack,
)
from fedmr_flwr.units import describe

# What the roster keeps stands in a checkpoint beside what the strategy keeps.
_ROSTER = "roster."
# In which all clients of a simulation must have come.
_SIMULATION_SECONDS = 120.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run configuration names: `conf`, a file, and `set`, overrides of it."""
    conf = Path(str(context.run_config["conf"])).expanduser()
    if not conf.is_absolute():
        conf = Path(__file__).parent.parent / conf  # the files of conf/ travel with the app
    settings = folder.choose(config.load(conf, _words(str(context.run_config["set"]))))
    if settings.engine == "ray" and not engines.is_simulation(grid):  # `flwr run` chooses by its federation
        settings = settings.model_copy(update={"engine": "deployment"})
    if settings.engine == "ray" and settings.ray_address not in (None, os.environ.get("RAY_ADDRESS")):
        raise ConfigError(
            "ray-address comes too late under `flwr run`, where Ray starts before the configuration is read; "
            f"export RAY_ADDRESS={settings.ray_address} before the SuperLink starts, or leave ray-address out"
        )
    assert settings.run_dir is not None
    # `fedmr run` and `fedmr resume` have prepared the folder and hand over the configuration that lies in it.
    out = RunFolder(settings.run_dir)
    prepared = conf == out.config and out.status == "starting"
    quiet()
    console = Console(width=120)
    path = f"run folder: {settings.run_dir}"
    console.print(path, soft_wrap=True, highlight=False, markup=False)
    with Display(settings.rounds, console) as display:
        run(settings, engines.grid_of(settings, grid, display.say), display, out if prepared else None)
    console.print(path, soft_wrap=True, highlight=False, markup=False)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"set = {text!r}: {error}; write key=value key=value") from None


class Federation:
    """Everything a run needs on the server, checked before anything is written.

    Args:
        settings: the run.

    Raises:
        FedmrError: something in the configuration or the data is wrong.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = pick_device(settings.device)
        # A server scores on what it has; in a deployment the nodes say for themselves where they train.
        alone = settings.engine == "deployment" and self.device.type == "cpu"
        self.precision: Precision = "float32" if alone else settings.precision
        with arithmetic(self.precision, self.device):
            pass  # a precision that the device does not know is refused
        self.dataset = datasets.load(settings.data, settings.data_dir)
        if settings.training.augment and self.dataset.normalisation is None:
            raise ConfigError("training.augment: texts cannot be shifted and flipped; leave it out")
        model = models.build(settings.model.name, self.dataset.input_shape, self.dataset.classes, settings.seed)
        self.layout = layout_of(model)
        self.codec = Codec(self.layout, wire=settings.wire)
        initial = pack(model, self.layout)
        self.arrays = self.codec.encode([initial.floats], [initial.ints])
        self.model = model
        self.strategy = algorithms.create(settings, self.layout)
        self.units = self.strategy.units if isinstance(self.strategy, MultiModel) else ()
        # None if every client has examples of its own, of which the server knows nothing.
        self.parts: list[partitions.Indices] | None = None
        if settings.engine != "deployment" or settings.partition.name != partitions.NODES:
            self.parts = partitions.split(self.dataset, settings.clients, settings.partition, settings.seed)

    @cached_property
    def digest(self) -> str:
        """The hash of the data."""
        return self.dataset.digest()

    def evaluate(self, arrays: ArrayRecord) -> dict[str, Any]:
        """Score a global model and, if the strategy asks for it, the model of every slot on the test set."""
        score = self._score(self.codec.decode(arrays))
        numbers: dict[str, Any] = {"test-loss": score.loss, "test-accuracy": score.accuracy}
        strategy = self.strategy
        if isinstance(strategy, MultiModel) and strategy.options.evaluate_slots and strategy.population:
            numbers["slot-accuracies"] = [self._score(model).accuracy for model in strategy.population]
        return numbers

    def _score(self, model: Packed) -> Score:
        place(self.model, self.device, self.precision)
        unpack(model, self.layout, self.model)
        with arithmetic(self.precision, self.device):
            return evaluate(self.model, self.dataset, self._test, self.device)

    @cached_property
    def _test(self) -> Examples:
        """The test set, where models are scored."""
        return self.dataset.test.to(self.device)

    def title(self) -> str:
        """Say in one line what is run."""
        settings = self.settings
        changed = settings.strategy.model_dump(by_alias=True, include={"local_rule"}, exclude_none=True)
        changed |= self.strategy.options.model_dump(by_alias=True, include={"unit"})
        for options in (self.strategy.options, algorithms.local_rule(settings).options):
            changed |= options.model_dump(by_alias=True, exclude_defaults=True)
        if settings.privacy.local_dp:
            changed["local-dp ε"] = settings.privacy.local_dp.epsilon
        described = "".join(f", {name} {_plain(value)}" for name, value in changed.items())
        return f"{settings.strategy.name}{described} · {settings.division()} · seed {settings.seed}"


def _plain(value: Any) -> str:
    return describe(value) if isinstance(value, tuple) else str(value)


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
            federation = Federation(settings)
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


def _train(federation: Federation, grid: Grid, out: RunFolder, display: Display) -> ArrayRecord:
    """Write down what is known beforehand, then go through the rounds that are left."""
    settings, strategy = federation.settings, federation.strategy
    _describe(federation, out)
    completed, arrays, roster_state = _resume(federation, out, display)
    out.note(status="running")

    def report(row: loop.Row, arrays: ArrayRecord, stops: bool) -> None:
        out.add_row(row)
        # The round in which a run stops is bad, so nothing changed in it, and it is to be done again.
        done = row["round"] - stops
        if stops or done % settings.checkpoint_every == 0 or done == settings.rounds:
            out.flush_rows()
            state = {**strategy.state(), **{_ROSTER + name: array for name, array in roster.state().items()}}
            checkpoint.save(out.checkpoints, Checkpoint(done, federation.codec.decode(arrays).on_host(), state))
        display.show(row)

    form = Form.of(federation.dataset)
    config = train_config(settings, federation.layout, form, out.identifier())
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
        if not is_want_of_memory(error):
            raise
        raise DeviceError(
            f"device {federation.device}: there is no memory to average and to score models; set device=cpu, or with "
            "engine=gpu lower clients-per-round"
        ) from None
    if settings.evaluate_clients:
        scores = clients.accuracies(roster, arrays, config, settings.clients_per_round, settings.round_timeout)
        out.note(**{"client-accuracy": clients.summary(scores)})
    return arrays


def _describe(federation: Federation, out: RunFolder) -> None:
    """Write down what is known before the first round; a run that goes on must find the same.

    Raises:
        RunFolderError: it goes on with another configuration, other data or another division of it.
    """
    settings = federation.settings
    facts = {
        "clients": settings.clients,
        "clients-per-round": settings.clients_per_round,
        "seed": settings.seed,
        "model": {"name": settings.model.name, "parameters": models.parameter_count(federation.model)},
        "data": {"name": settings.data.name, "normalisation": settings.data.normalisation},
        "training": settings.training.model_dump(by_alias=True),
        "strategy": algorithms.resolve(settings).strategy.model_dump(mode="json", by_alias=True, exclude_none=True),
        "data-sha256": federation.digest,
        "wire": settings.wire,
        "precision": settings.precision,
        "privacy": settings.privacy.model_dump(by_alias=True),
    }
    if federation.parts is not None:
        facts["partition-sha256"] = partitions.digest(federation.parts)
    before = out.read_manifest()
    for name, fact in facts.items():
        if before.get(name, fact) != fact:
            raise RunFolderError(
                f"{out.path} was begun with {name} = {before[name]}, and now it is {fact}; restore what it was, or "
                "begin a new run"
            )
    out.note(
        title=federation.title(),
        engine=settings.engine,
        device=str(federation.device),
        units=[unit.name for unit in federation.units],
        **facts,
    )
    if federation.parts is not None:
        partitions.save(federation.parts, out.partition)
        counts = partitions.class_counts(federation.dataset, federation.parts)
        plots.clients(counts, federation.title(), out.clients)


def _resume(
    federation: Federation, out: RunFolder, display: Display
) -> tuple[int, ArrayRecord, dict[str, NDArray[Any]]]:
    """Take up the latest checkpoint, if there is one; return its round, its global model and the roster's state."""
    found, problems = checkpoint.latest(out.checkpoints)
    done = found.round if found else 0
    checkpoint.forget_after(out.checkpoints, done)
    out.forget_rows_after(done)
    if found is None:
        return 0, federation.arrays, {}
    rosters = {name.removeprefix(_ROSTER): array for name, array in found.state.items() if name.startswith(_ROSTER)}
    federation.strategy.restore({k: v for k, v in found.state.items() if not k.startswith(_ROSTER)})
    resumed = {"after-round": done, "problems": problems, "versions": folder.versions()}
    out.note(resumed=[*out.read_manifest().get("resumed", []), resumed])
    display.show_resumed(resumed)
    return done, federation.codec.encode([found.model.floats], [found.model.ints]), rosters
