"""The command `fedmr tune`."""

from pathlib import Path
from typing import Annotated

import typer

from fedmr_flwr.cli.arguments import Conf, Engine, Overrides, Superlink, engine_overrides, print_line
from fedmr_flwr.report.console import Console


def tune(
    conf: Conf,
    overrides: Overrides = None,
    strategies: Annotated[
        str, typer.Option(metavar="LIST", help="By commas, as for compare; an option after a slash is not tuned.")
    ] = "fedmr,fedavg",
    trials: Annotated[
        int, typer.Option(metavar="N", min=1, help="The trials of each strategy; the first one has the defaults.")
    ] = 16,
    rungs: Annotated[
        int, typer.Option(metavar="N", min=1, help="How often trials are compared; 1: all run all rounds.")
    ] = 3,
    jobs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Run N at a time, with --engine in-process or gpu.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The folder of all trials; default: runs/tune-CONF.")
    ] = None,
    engine: Engine = None,
    superlink: Superlink = None,
) -> None:
    """Tune learning rate, weight decay and the options of strategies.

    Every strategy gets the same number of trials, at random, on validation examples held out of the training set. All
    of them train for a ninth of the rounds, the best third for a third, and the best third of these for all. Called
    again, it continues where it was stopped. CONF and OVERRIDES are as for `fedmr run`. An example:

      fedmr tune quickstart rounds=45 --trials 9 --engine in-process --jobs 2

      fedmr compare runs/tune-quickstart/best.yaml --seeds 1,2,3
    """
    # Imported here, because they take seconds to load, which nobody should wait for to read the help.
    from fedmr_flwr.analysis.studies import jobs as side_by_side
    from fedmr_flwr.analysis.studies.study import parse_strategies
    from fedmr_flwr.analysis.tuning import run
    from fedmr_flwr.analysis.tuning.halving import rungs as rungs_of
    from fedmr_flwr.analysis.tuning.trials import plan
    from fedmr_flwr.launch import engines

    given = [*(overrides or []), *engine_overrides(engine, superlink)]
    out = (out or Path("runs") / f"tune-{Path(conf).stem}").absolute()
    planned = plan(conf, given, parse_strategies(strategies), trials, out)
    side_by_side.check(planned, jobs)
    best = run.run(planned, rungs_of(planned[0].settings.rounds, rungs), jobs, out, Console(), engines.run)
    run.write_study(best, conf, given, out / "best.yaml")
    for name in ("space.yaml", "trials.csv", "best.yaml"):
        print_line(str(out / name))
