"""The commands that train: `fedmr run`, `resume` and `compare`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedmr_flwr.cli.arguments import Conf, Engine, Folder, Overrides, Superlink, engine_overrides, print_line
from fedmr_flwr.config.identity import check_resumable
from fedmr_flwr.config.loading import load, resolve_paths, to_yaml
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import ConfigError, FedmrError, RunError, RunFolderError
from fedmr_flwr.report.display import Display, format_partition
from fedmr_flwr.report.tables import comparison_table, format_client_accuracy, table
from fedmr_flwr.runs import folder
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.runs.versions import changed_versions

# Columns of a comparison's table, also in a narrow terminal: truncated numbers are worse than wrapped lines.
_WIDE = 120


def run(conf: Conf, overrides: Overrides = None, engine: Engine = None, superlink: Superlink = None) -> None:
    """Train a model and write its run folder.

    CONF is a configuration: a file, or the name of one that comes with the package, such as quickstart. OVERRIDES are
    key=value, nested keys with dots: training.lr=0.1.
    """
    settings = resolve_paths(load(conf, [*(overrides or []), *engine_overrides(engine, superlink)]))
    assert settings.run_dir is not None
    # Before the data are loaded, which may take minutes.
    folder.check_free(settings.run_dir)
    _run(settings)


def resume(
    run_folder: Folder, overrides: Overrides = None, engine: Engine = None, superlink: Superlink = None
) -> None:
    """Resume a run that was stopped, or continue a complete one.

    RUN is its folder. The result is the same as without the interruption, with another engine, too. OVERRIDES are
    key=value: rounds=N for more rounds; engine, device and patience may change, too, but nothing else.
    """
    out = RunFolder.open(run_folder.absolute())
    changes = [*(overrides or []), *engine_overrides(engine, superlink)]
    check_resumable(changes)
    settings = load(out.config, changes).model_copy(update={"run_dir": out.path})
    done, manifest = len(out.read_rows()), out.read_manifest()
    if settings.rounds < done:
        raise ConfigError(f"rounds is {settings.rounds}, but {out.path} has already {done} rounds; raise it")
    # A completed run can be continued after its number of rounds was raised.
    if out.status == "completed" and manifest.get("rounds", 0) >= settings.rounds:
        print_line(f"{out.path} is complete: it has all {settings.rounds} rounds")
        return
    # Not an error: other versions give a valid result, only not bit for bit the same.
    for line in changed_versions(manifest.get("versions", {})):
        print_line(f"{line}: the result may differ in its last digits")
    if overrides:
        with out.locked():
            out.configure(to_yaml(settings))
    _run(settings, out)


def compare(
    conf: Conf,
    overrides: Overrides = None,
    strategies: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Separated by commas, options after slashes: fedmr,fedprox/mu=0.1,flwr:FedAdam.",
        ),
    ] = "fedmr,fedavg",
    seeds: Annotated[
        str | None, typer.Option(metavar="LIST", help="Separated by commas; default: the configuration's own.")
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(metavar="ACCURACY", help="Accuracy to reach; default: one that all runs reach."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The folder of all runs; default: runs/compare-CONF.")
    ] = None,
    engine: Engine = None,
    superlink: Superlink = None,
) -> None:
    """Compare strategies over several seeds.

    Train with each, then write tables and a plot. CONF is a configuration file, OVERRIDES are key=value for all runs.
    Runs that are complete are not repeated, and those that were stopped are resumed.
    """
    # Imported here, because they take seconds to load, which nobody should wait for to read the help.
    from fedmr_flwr.launch import engines
    from fedmr_flwr.report import comparison, plots

    out = (out or Path("runs") / f"compare-{Path(conf).stem}").absolute()
    target = None if target is None else comparison.check_target(target)
    of_seeds = None if seeds is None else comparison.parse_seeds(seeds)
    compared = comparison.parse_strategies(strategies)
    every = [*(overrides or []), *engine_overrides(engine, superlink)]
    planned = comparison.plan(conf, every, compared, of_seeds, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"cannot use {out}: {error.strerror}; choose another folder with --out") from None
    found: dict[str, list[comparison.Metrics]] = {variant.label: [] for variant in compared}
    failed = 0
    for at, (variant, settings) in enumerate(planned, 1):
        settings = resolve_paths(settings)
        print_line(f"[{at}/{len(planned)}] {variant.label}, seed {settings.seed}: {settings.run_dir}")
        done = comparison.find_earlier_run(settings)
        try:
            if done is None or done.status != "completed":
                done = engines.run(settings, Display(settings.rounds, Console()), done)
            found[variant.label].append(comparison.rows_of(done))
        except FedmrError as error:
            # The other runs, which may take hours, continue.
            failed += 1
            print_line(f"  failed: {error}")
    lines, target = comparison.summarise(found, len(planned) // len(compared), target)
    common = planned[0][1]
    title = f"{format_partition(common)}, {common.clients_per_round} a round, {common.model.name}"
    comparison.write(lines, target, out)
    plots.comparison(found, title, out / "comparison.png")
    Console(width=max(_WIDE, Console().width)).print(comparison_table(lines, target))
    for kind in ("md", "csv", "tex", "png"):
        print_line(str(out / f"comparison.{kind}"))
    if failed:
        raise RunError(f"{failed} of {len(planned)} runs failed and are not in the table; see their lines above")


def _run(settings: Settings, prepared: RunFolder | None = None) -> None:
    """Run an experiment, or resume one, and show its results."""
    from fedmr_flwr.launch import engines

    path = f"run folder: {settings.run_dir}"
    # Before and after: at the end the first line has scrolled away.
    print_line(path)
    done = engines.run(settings, Display(settings.rounds, Console()), prepared)
    Console().print(table(done.read_rows()))
    if over := done.read_manifest().get("client-accuracy"):
        print_line(format_client_accuracy(over))
    print_line(path)
