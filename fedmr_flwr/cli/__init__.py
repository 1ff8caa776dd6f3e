"""The command line, `fedmr`.

Commands import what they need when they are called, so that neither help nor completion waits for it.
"""

import signal
import sys
from typing import Annotated

import typer

import fedmr_flwr
from fedmr_flwr.cli import deploy, runs, views
from fedmr_flwr.cli.arguments import Command, ConfCommand, print_line
from fedmr_flwr.cli.compare import compare
from fedmr_flwr.cli.flatness import flatness
from fedmr_flwr.cli.init import init
from fedmr_flwr.cli.output import lasting_output
from fedmr_flwr.cli.tune import tune
from fedmr_flwr.errors import FedmrError
from fedmr_flwr.report.display import quiet
from fedmr_flwr.runs.bugs import in_one_line

_INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    suggest_commands=False,  # Click suggests them, too
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        print_line(f"fedmr_flwr {fedmr_flwr.__version__}")
        raise typer.Exit()


@app.callback(no_args_is_help=True)
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Federated learning by layer-wise model recombination (FedMR).

    \b
    fedmr run quickstart                                train, about a minute
    fedmr run quickstart strategy.name=fedavg           with another setting
    fedmr compare quickstart --strategies fedmr,fedavg  one table of both
    fedmr init my-project                               your own model and data

    Each command has a --help of its own.
    """  # noqa: D301  # Click wants the character itself, not a backslash


for command, kind in (
    (init, Command), (runs.run, ConfCommand), (runs.resume, Command), (compare, ConfCommand), (tune, Command),
    (views.score, Command), (views.report, Command), (views.plot, Command), (views.export, Command),
    (flatness, Command), (views.data, Command), (views.partition, Command), (views.units, Command),
):  # fmt: skip
    app.command(cls=kind)(command)
app.command("open", cls=Command)(views.open_model)
app.add_typer(deploy.app, name="deploy")


def main() -> None:
    """Run the command line; any error ends with one line and status 1."""
    for name in (signal.SIGTERM, signal.SIGHUP):  # so that `kill` and a closed terminal stop Flower, too
        if signal.getsignal(name) is not signal.SIG_IGN:  # as under nohup
            signal.signal(name, signal.default_int_handler)
    quiet()
    # Code of the user's own may lie here. Last, so that no file here takes the place of a library.
    sys.path.append("")
    with lasting_output():
        _call()


def _call() -> None:
    """Call the command of the arguments, and report its error."""
    try:
        with in_one_line():
            app()
    except FedmrError as error:
        print(f"fedmr: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # after Ctrl-C Typer exits without a message
            print("fedmr: interrupted", file=sys.stderr)
        raise
