"""The command line: `fedmr run`, `resume`, `compare`, `deploy`, `plot`, `partition` and `units`."""

import logging
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedmr_flwr import config
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import ConfigError, FederationError, FedmrError, RunFolderError
from fedmr_flwr.files import write_aside, writing
from fedmr_flwr.report.comparison import Rows
from fedmr_flwr.report.display import (
    Display,
    comparison_table,
    describe_clients,
    division,
    partition_table,
    quiet,
    table,
    unit_table,
)
from fedmr_flwr.runs import folder
from fedmr_flwr.runs.folder import RunFolder

_INTERRUPTED = 130
# Columns of a comparison's table, also in a narrow terminal: cut numbers are worse than wrapped lines.
_WIDE = 120

Conf = Annotated[Path, typer.Argument(help="A configuration file, such as conf/quickstart.yaml.")]
Folder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, nested keys with dots: training.lr=0.1")]

Engine = Annotated[str | None, typer.Option(help="ray, in-process, gpu or deployment; short for engine=NAME.")]
Superlink = Annotated[
    str | None,
    typer.Option(help="In Flower's configuration; short for engine=deployment deployment.superlink=NAME."),
]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Federated learning by layer-wise model recombination (FedMR).",
)


@app.command()
def run(
    conf: Conf,
    overrides: Overrides = None,
    engine: Engine = None,
    superlink: Superlink = None,
) -> None:
    """Train a federation and write its run folder."""
    extra = _engine(engine, superlink)
    settings = folder.choose(config.load(conf, [*(overrides or []), *extra]))
    assert settings.run_dir is not None
    folder.check_free(settings.run_dir)
    _run(settings)


@app.command()
def resume(
    run_folder: Folder,
    engine: Engine = None,
    superlink: Superlink = None,
) -> None:
    """Go on with a stopped run, to the same result; with another engine, too."""
    out = RunFolder.open(run_folder.absolute())
    settings = config.load(out.config, _engine(engine, superlink)).model_copy(update={"run_dir": out.path})
    manifest = out.read_manifest()
    if out.status == "completed" and manifest.get("rounds", 0) >= settings.rounds:
        _print(f"{out.path} is complete: all {settings.rounds} rounds are done")
        return
    for name, now in folder.versions().items():
        before = manifest.get("versions", {}).get(name, now)
        if before != now:
            _print(f"{name} was {before} and is {now}: the result may differ in its last digits")
    _run(settings, out)


@app.command()
def compare(
    conf: Conf,
    overrides: Overrides = None,
    strategies: Annotated[
        str, typer.Option(help="Separated by commas, options after slashes: fedmr,fedprox/mu=0.1,flwr:FedAdam")
    ] = "fedmr,fedavg",
    seeds: Annotated[
        str | None, typer.Option(help="Separated by commas; the configuration's own if missing.")
    ] = None,
    target: Annotated[float | None, typer.Option(help="An accuracy; by default one that all runs reach.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of all runs, by default runs/compare-CONF.")] = None,
    engine: Engine = None,
    superlink: Superlink = None,
) -> None:
    """Train with several strategies and seeds, then write tables and a plot; go on with what is unfinished."""
    from fedmr_flwr.report import comparison, plots

    out = (out or Path("runs") / f"compare-{conf.stem}").absolute()
    extra = _engine(engine, superlink)
    target = None if target is None else comparison.accuracy(target)
    of_seeds = None if seeds is None else comparison.seeds(seeds)
    compared = comparison.variants(strategies)
    planned = comparison.plan(conf, [*(overrides or []), *extra], compared, of_seeds, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"cannot use {out}: {error.strerror}; name another folder with --out") from None
    found: dict[str, list[Rows]] = {variant.label: [] for variant in compared}
    failed = 0
    for at, (variant, settings) in enumerate(planned, 1):
        settings = folder.choose(settings)
        _print(f"[{at}/{len(planned)}] {variant.label}, seed {settings.seed}: {settings.run_dir}")
        done = comparison.earlier(settings)
        try:
            if done is None or done.status != "completed":
                done = _train(settings, done)
            found[variant.label].append(comparison.rows_of(done))
        except FedmrError as error:
            failed += 1
            _print(f"  failed: {error}")
    lines, target = comparison.lines(found, len(planned) // len(compared), target)
    common = planned[0][1]
    title = f"{division(common)}, {common.clients_per_round} a round, {common.model.name}"
    comparison.write(lines, target, out)
    plots.comparison(found, title, out / "comparison.png")
    Console(width=max(_WIDE, Console().width)).print(comparison_table(lines, target))
    for kind in ("md", "csv", "tex", "png"):
        _print(str(out / f"comparison.{kind}"))
    if failed:
        raise FederationError(f"{failed} of {len(planned)} runs failed and are not in the table; their lines say why")


deployment = typer.Typer(no_args_is_help=True, help="Clients on machines of their own: keys, server, nodes.")
app.add_typer(deployment, name="deploy")

Insecure = Annotated[bool, typer.Option("--insecure", help="Without TLS and keys; on this machine only.")]


@deployment.command()
def init(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    host: Annotated[list[str], typer.Option(help="A name or address of the server; may be repeated.")],
    nodes: Annotated[int, typer.Option(min=1, help="How many nodes there are.")],
) -> None:
    """Make certificates, keys and settings for a server and its nodes."""
    from fedmr_flwr.deployment import folders, guide

    made = folders.create(out, host, nodes)
    write_aside(out / "README.md", guide.text(*made).encode())
    _print(f"{out / 'README.md'} says what goes where and which commands to run")


@deployment.command()
def server(
    folder_: Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder.")],
    insecure: Insecure = False,
) -> None:
    """Run a SuperLink that lets in the nodes whose keys lie in its folder."""
    from fedmr_flwr.deployment import folders, processes

    path = folder_.absolute()
    processes.serve(path, folders.read_server(path), insecure, _print)


@deployment.command()
def node(
    folder_: Annotated[Path, typer.Argument(metavar="DIR", help="The node's folder.")],
    insecure: Insecure = False,
) -> None:
    """Run a SuperNode that trains on this machine's data."""
    from fedmr_flwr.deployment import folders, processes

    path = folder_.absolute()
    processes.train(path, folders.read_node(path), insecure, _print)


@app.command()
def plot(run_folder: Folder) -> None:
    """Draw the pictures of a run again."""
    from fedmr_flwr.report import plots

    drawn = plots.draw(RunFolder.open(run_folder.absolute()))
    if not drawn:
        raise RunFolderError(f"{run_folder} holds no finished round yet, so there is nothing to draw")
    for path in drawn:
        _print(str(path))


@app.command()
def partition(
    conf: Conf,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="A new folder for partition.npz and clients.png.")] = Path("partition"),
) -> None:
    """Print, draw and save which client holds what."""
    from fedmr_flwr.data import datasets, partitions
    from fedmr_flwr.report import plots

    settings = config.load(conf, overrides or [])
    folder.check_free(out, "--out FOLDER")
    dataset = datasets.load(settings.data, settings.data_dir)
    parts = partitions.split(dataset, settings.clients, settings.partition, settings.seed)
    counts = partitions.class_counts(dataset, parts)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    partitions.save(parts, out / "partition.npz")
    plots.clients(counts, division(settings), out / "clients.png")
    Console().print(partition_table(counts, partitions.divergences(counts), division(settings)))
    for name in ("partition.npz", "clients.png"):
        _print(str(out / name))


@app.command()
def units(conf: Conf, overrides: Overrides = None) -> None:
    """Print the units of recombination of a configuration's model."""
    from fedmr_flwr import algorithms, models
    from fedmr_flwr.algorithms.fedmr import FedMR
    from fedmr_flwr.data import datasets
    from fedmr_flwr.models.packing import layout_of

    settings = config.load(conf, overrides or [])
    form = datasets.known_form(settings.data, settings.data_dir)
    layout = layout_of(models.build(settings.model.name, *form))
    strategy = algorithms.create(settings, layout)
    if not isinstance(strategy, FedMR):
        raise ConfigError(f"{settings.strategy.name} does not recombine; choose strategy.name=fedmr")
    Console().print(unit_table(strategy.units, layout, strategy.options.unit))


def _engine(engine: str | None, superlink: str | None) -> list[str]:
    """Return the overrides that two options stand for."""
    if superlink:
        return [f"engine={engine or 'deployment'}", f"deployment.superlink={superlink}"]
    return [f"engine={engine}"] if engine else []


def _run(settings: Settings, prepared: RunFolder | None = None) -> None:
    """Run or go on with a federation and show what becomes of it."""
    path = f"run folder: {settings.run_dir}"
    _print(path)
    done = _train(settings, prepared)
    Console().print(table(done.read_rows()))
    if over := done.read_manifest().get("client-accuracy"):
        _print(describe_clients(over))
    _print(path)


def _train(settings: Settings, prepared: RunFolder | None) -> RunFolder:
    """Run or go on with a federation, with a progress bar."""
    from fedmr_flwr.data import datasets

    datasets.load(settings.data, settings.data_dir)  # may take minutes, with a progress bar of its own
    with Display(settings.rounds, Console()) as display:
        if settings.engine == "ray":
            from fedmr_flwr.launch import ray

            return ray.run(settings, display, prepared)
        if settings.engine == "deployment":
            from fedmr_flwr.launch import on_superlink as deployment

            return deployment.run(settings, display, prepared)
        from fedmr_flwr.launch import engines
        from fedmr_flwr.server.run import run as serve

        logging.getLogger("flwr").setLevel(logging.WARNING)  # its strategies comment on every round
        return serve(settings, engines.grid_of(settings, say=display.say), display, prepared)


def _print(line: str) -> None:
    Console().print(line, soft_wrap=True, highlight=False, markup=False)


def main() -> None:
    """Run the command line; a user's mistake ends in one line and status 1."""
    for name in (signal.SIGTERM, signal.SIGHUP):  # so that `kill` and a closed terminal stop Flower too
        if signal.getsignal(name) is not signal.SIG_IGN:  # as under nohup
            signal.signal(name, signal.default_int_handler)
    quiet()
    try:
        app()
    except FedmrError as error:
        print(f"fedmr: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # Typer ends so after Ctrl-C, without a word
            print("fedmr: interrupted", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
