"""The commands that do not train: `fedmr plot`, `score`, `report`, `export`, `data`, `partition` and `units`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedmr_flwr.cli.arguments import Conf, Folder, Format, Overrides, PictureFormat, print_line, progress
from fedmr_flwr.errors import ConfigError, RunFolderError
from fedmr_flwr.report.console import Console


def plot(run_folder: Folder, form: PictureFormat = Format.png) -> None:
    """Draw the plots of a run again.

    RUN is its folder.
    """
    from fedmr_flwr.report import plots, scores
    from fedmr_flwr.runs.folder import RunFolder

    folder = RunFolder.open(run_folder.absolute())
    drawn = [*plots.draw(folder, form), *scores.draw(folder, form)]
    if not drawn:
        raise RunFolderError(f"{run_folder} has no completed round yet, so there is nothing to draw")
    for path in drawn:
        print_line(str(path))


def score(
    run_folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
    target: Annotated[
        float | None, typer.Option(metavar="ACCURACY", help="Accuracy to reach; default: the run's stop.target.")
    ] = None,
) -> None:
    """Show what a run has come to.

    Whether it is complete, accuracy, loss, and what they cost in rounds, bytes and seconds. RUN is its folder.
    """
    from fedmr_flwr.analysis.studies.study import check_target
    from fedmr_flwr.config.loading import load_recorded
    from fedmr_flwr.report import summary
    from fedmr_flwr.report.tables import score_table
    from fedmr_flwr.runs.folder import RunFolder

    if target is not None:
        check_target(target)
    out = RunFolder.open(run_folder.absolute())
    settings = load_recorded(out.config)
    found = summary.score(out, settings.seed, settings.rounds, settings.stop.target if target is None else target)
    if as_json:
        print_line(json.dumps(found, indent=2))
    else:
        Console().print(score_table(found))


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", hidden=True)],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The page; default: FOLDER/report.html.")] = None,
) -> None:
    """Write a run or a comparison as one HTML page.

    Tables, pictures, configuration, versions and the command, in one file that can be sent. FOLDER is that of a run,
    or of `fedmr compare`.
    """
    from fedmr_flwr.analysis import page

    print_line(str(page.write(folder.absolute(), out)))


def open_model(
    run_folder: Folder, key: Annotated[Path, typer.Option(metavar="FILE", help="The key of the run's nodes.")]
) -> None:
    """Make model.safetensors of a sealed run.

    RUN is its folder, or a copy of it on a machine that has the key.
    """
    from fedmr_flwr.runs.folder import RunFolder
    from fedmr_flwr.server.opening import open_run
    from fedmr_flwr.wire.sealing import read_key

    out = RunFolder.open(run_folder.absolute())
    number = open_run(out, read_key(key))
    print_line(f"{out.model}: the global model after round {number}")


def export(
    run_folder: Folder,
    to: Annotated[str, typer.Option(metavar="NAME", help="tensorboard, wandb or mlflow.")],
) -> None:
    """Write a run's metrics to TensorBoard, W&B or MLflow.

    As `track` in the configuration does while a run trains; what is there already is not written again. RUN is its
    folder.
    """
    from fedmr_flwr.config.loading import load_recorded
    from fedmr_flwr.report import tracking
    from fedmr_flwr.runs.folder import RunFolder

    out = RunFolder.open(run_folder.absolute())
    if to not in tracking.TRACKERS:
        raise ConfigError(f"--to {to}: choose one of {', '.join(tracking.TRACKERS)}")
    tracking.check([to])
    with out.locked(), tracking.tracking([to], out, load_recorded(out.config), print_line):
        pass


def partition(
    conf: Conf,
    overrides: Overrides = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="A new folder for partition.npz and clients.png.")
    ] = Path("partition"),
    form: PictureFormat = Format.png,
) -> None:
    """Show the partition of the data among clients.

    It is printed, drawn and saved. CONF is a configuration file, OVERRIDES are key=value.
    """
    from fedmr_flwr.config.loading import load
    from fedmr_flwr.data import datasets, heterogeneity, partition_files, partitions, skew
    from fedmr_flwr.files import writing
    from fedmr_flwr.report import examples
    from fedmr_flwr.report.display import format_partition
    from fedmr_flwr.report.tables import partition_table
    from fedmr_flwr.runs import folder

    settings = load(conf, overrides or [])
    # Before the data are loaded, which may take minutes.
    folder.check_free(out, "--out FOLDER")
    with progress("reading the data"):
        dataset = datasets.load(settings.data, settings.data_dir, settings.seed)
    skew.check(dataset, settings.partition)
    parts = partitions.split(dataset, settings.clients, settings.partition, settings.seed)
    counts = heterogeneity.class_counts(dataset, parts)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    partition_files.save(parts, out / "partition.npz")
    title, distances = format_partition(settings), heterogeneity.divergences(counts)
    drawn = examples.draw_partition(dataset, parts, settings, title, out, form)
    # Not as the table's title and caption, which would be wrapped to its width.
    print_line(title)
    Console().print(partition_table(counts, distances))
    print_line(f"mean Jensen-Shannon distance to all labels: {distances.mean():.3f}")
    for path in (out / "partition.npz", *drawn):
        print_line(str(path))


def data(
    conf: Conf,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The picture of examples: .png, .svg or .pdf.")] = Path(
        "examples.png"
    ),
) -> None:
    """Show the data: examples, classes, columns.

    They are counted, some images are drawn, and the place of the shared copy is printed. CONF is a configuration
    file, OVERRIDES are key=value.
    """
    from fedmr_flwr.config.loading import load
    from fedmr_flwr.data import datasets
    from fedmr_flwr.files import writing
    from fedmr_flwr.report import examples

    if out.suffix not in {f".{form}" for form in Format}:
        raise ConfigError(f"--out {out}: the end of its name is its format; choose .png, .svg or .pdf")
    settings = load(conf, overrides or [])
    with progress("reading the data"):
        dataset = datasets.load(settings.data, settings.data_dir, settings.seed)
    for line in (settings.data.name, *examples.describe(dataset)):
        print_line(line)
    Console().print(examples.class_table(dataset, settings.data.scored_on))
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    if examples.draw(dataset, settings.data.name, out):
        print_line(str(out))
    if copy := datasets.copy_of(settings.data, settings.data_dir, settings.seed):
        print_line(f"shared copy: {copy}")


def units(conf: Conf, overrides: Overrides = None) -> None:
    """Show a model's units of recombination.

    CONF is a configuration file, OVERRIDES are key=value, for instance strategy.unit=block.
    """
    from fedmr_flwr import algorithms, models
    from fedmr_flwr.algorithms.fedmr import FedMR
    from fedmr_flwr.config.loading import load
    from fedmr_flwr.data import datasets
    from fedmr_flwr.models.packing import layout_of
    from fedmr_flwr.report.tables import unit_table

    settings = load(conf, overrides or [])
    # Without reading the files where possible, so that units can be shown before any data exist.
    form = datasets.form_of(settings.data, settings.data_dir, settings.seed)
    layout = layout_of(models.build(settings.model.name, form.shape, form.classes, text=form.text))
    strategy = algorithms.create(settings, layout)
    if not isinstance(strategy, FedMR):
        raise ConfigError(f"{settings.strategy.name} does not recombine; choose strategy.name=fedmr")
    Console().print(unit_table(strategy.units, layout, strategy.options.unit))
