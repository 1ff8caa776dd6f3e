"""The server's side: a run from its settings to its results."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from fedmr_flwr import algorithms, config, engines, models
from fedmr_flwr.client import train_config
from fedmr_flwr.config import Settings
from fedmr_flwr.data import datasets, partitions
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.records import Codec
from fedmr_flwr.roster import RosterGrid
from fedmr_flwr.runs import checkpoint, folder, loop, plots
from fedmr_flwr.runs.checkpoint import Checkpoint
from fedmr_flwr.runs.display import Display, quiet
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.training import Score, evaluate, layout_of, pack, pick_device, place, unpack

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run configuration names: `conf`, a file, and `set`, overrides of it."""
    conf = Path(str(context.run_config["conf"])).expanduser()
    if not conf.is_absolute():
        conf = Path(__file__).parent.parent / conf  # the files of conf/ travel with the app
    settings = folder.choose(config.load(conf, _words(str(context.run_config["set"]))))
    assert settings.run_dir is not None
    # `fedmr run` has made the folder already and hands over the configuration that lies in it.
    out = RunFolder(settings.run_dir)
    prepared = conf == out.config and out.status == "starting"
    quiet()
    console = Console(width=120)
    path = f"run folder: {settings.run_dir}"
    console.print(path, soft_wrap=True, highlight=False, markup=False)
    with Display(settings.rounds, console) as display:
        run(settings, engines.grid_of(settings, grid), display, out if prepared else None)
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
        self.dataset = datasets.load(settings.data.name, settings.data_dir)
        model = models.build(settings.model.name, self.dataset.input_shape, self.dataset.classes, settings.seed)
        self.layout = layout_of(model)
        self.codec = Codec(self.layout)
        initial = pack(model, self.layout)
        self.arrays = self.codec.encode([initial.floats], [initial.ints])
        self.model = model
        self.strategy = algorithms.create(settings, self.layout)
        labels = self.dataset.train.labels.numpy()
        self.parts = partitions.split(labels, settings.clients, settings.partition, settings.seed)
        self.counts = partitions.class_counts(labels, self.parts, self.dataset.classes)

    def score(self, arrays: ArrayRecord) -> Score:
        """Score a global model on the test set."""
        place(self.model, self.device)
        unpack(self.codec.decode(arrays), self.layout, self.model)
        return evaluate(self.model, self.dataset, self.dataset.test, self.device)

    def title(self) -> str:
        """Say in one line what is run."""
        settings = self.settings
        options = "".join(
            f", {name.replace('_', '-')} {value}" for name, value in self.strategy.options.model_dump().items()
        )
        return f"{settings.strategy.name}{options} · {self.division()} · seed {settings.seed}"

    def division(self) -> str:
        """Say in one line whose data it is."""
        partition = self.settings.partition
        alpha = f" α = {partition.alpha:g}" if partition.name == "dirichlet" else ""
        return f"{self.settings.data.name}, {self.settings.clients} clients, {partition.name}{alpha}"


def run(settings: Settings, grid: Grid, display: Display, prepared: RunFolder | None = None) -> RunFolder:
    """Run a federation from start to end and write its results.

    Args:
        settings: what to run, with its folder.
        grid: carries the messages.
        display: shows the rounds.
        prepared: the run's folder, if it is made already.

    Returns:
        The run folder, complete.

    Raises:
        FedmrError: the configuration, the data or the federation is at fault.
    """
    out = prepared
    try:
        if out is None:
            assert settings.run_dir is not None
            folder.check_free(settings.run_dir)
        federation = Federation(settings)
        out = out or RunFolder.create(settings)
        arrays = _train(federation, grid, out, display)
        tensors = federation.layout.unpack(federation.codec.decode(arrays))
        digest = out.save_model(tensors)
        rows = out.read_rows()
        plots.curves(rows, federation.title(), out.curves)
        out.note(status="completed", rounds=len(rows), **{"model-sha256": digest})
    except (Exception, KeyboardInterrupt) as error:
        if out is not None:
            out.fail(error)
        raise
    return out


def _train(federation: Federation, grid: Grid, out: RunFolder, display: Display) -> ArrayRecord:
    """Write down what is known beforehand, then go through the rounds."""
    settings = federation.settings
    out.note(
        status="running",
        device=str(federation.device),
        model={"name": settings.model.name, "parameters": models.parameter_count(federation.model)},
        strategy={"name": settings.strategy.name, **federation.strategy.options.model_dump(by_alias=True)},
        **{
            "data-sha256": federation.dataset.digest(),
            "partition-sha256": partitions.save(federation.parts, out.partition),
        },
    )
    plots.clients(federation.counts, federation.division(), out.clients)

    def report(row: Mapping[str, Any], arrays: ArrayRecord) -> None:
        out.add_row(row)
        if row["round"] % settings.checkpoint_every == 0 or row["round"] == settings.rounds:
            state = federation.strategy.state()
            checkpoint.save(out.checkpoints, Checkpoint(row["round"], federation.codec.decode(arrays), state))
        display.show(row)

    return loop.run(
        settings,
        federation.strategy,
        RosterGrid(grid, settings.clients),
        federation.arrays,
        train_config(settings, federation.layout),
        federation.score,
        report,
    )
