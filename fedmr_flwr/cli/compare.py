"""The command `fedmr compare`."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fedmr_flwr.cli.arguments import Engine, Format, PictureFormat, Superlink, engine_overrides
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.report.console import Console


def compare(
    arguments: Annotated[list[str], typer.Argument(metavar="CONF... [OVERRIDES]...", hidden=True)],
    strategies: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="By commas, options after slashes: fedmr,fedprox/mu=0.1,flwr:FedAdam; default: fedmr,fedavg, or "
            "the study's.",
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="LIST", help="By commas; default: the configuration's own.")
    ] = None,
    grid: Annotated[
        list[str] | None, typer.Option(metavar="AXIS", help="KEY=VALUE,VALUE: a row for each; may be repeated.")
    ] = None,
    target: Annotated[
        float | None, typer.Option(metavar="ACCURACY", help="Accuracy to reach; default: one that all runs reach.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Run N at a time, with --engine in-process or gpu.")
    ] = 1,
    plan: Annotated[bool, typer.Option("--plan", help="Only show the runs, and estimate hours and disk.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The folder of all runs; default: runs/compare-CONF.")
    ] = None,
    form: PictureFormat = Format.png,
    engine: Engine = None,
    superlink: Superlink = None,
) -> None:
    """Compare strategies over several seeds and settings.

    Train with each, then write tables and a plot. CONF is a configuration file or a name, as for `fedmr run`; several
    are rows of one table; or it is a study, such as studies/small-units. OVERRIDES are key=value for all runs. Runs
    that are complete are not repeated, and those that were stopped are resumed.
    """
    from fedmr_flwr.analysis.studies import estimate, run
    from fedmr_flwr.analysis.studies import jobs as side_by_side
    from fedmr_flwr.analysis.studies.plan import plan as plan_runs
    from fedmr_flwr.analysis.studies.study import study_of
    from fedmr_flwr.launch import engines

    confs, overrides = _divide(arguments)
    study = study_of(confs, strategies, seeds, grid or [], target)
    out = (out or Path("runs") / f"compare-{'-'.join(Path(conf).stem for conf in confs[:3])}").absolute()
    planned = plan_runs(study, [*overrides, *engine_overrides(engine, superlink)], out)
    side_by_side.check(planned, jobs)
    if plan:
        estimate.show(planned, jobs, Console(), engines.run)
    else:
        command = shlex.join(["fedmr", *sys.argv[1:]])
        run.run(planned, jobs, study.target, out, Console(), engines.run, form, command)


def _divide(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide the arguments into configurations and overrides."""
    confs = [text for text in arguments if "=" not in text or Path(text).is_file()]
    if not confs:
        raise ConfigError(f"'{arguments[0]}' is an override; name a configuration before it")
    return confs, [text for text in arguments if text not in confs]
