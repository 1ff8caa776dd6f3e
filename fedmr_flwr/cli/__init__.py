"""The command line, `fedmr`."""

import signal
import sys

import typer

from fedmr_flwr.cli import deploy, runs, views
from fedmr_flwr.cli.arguments import Command
from fedmr_flwr.errors import FedmrError
from fedmr_flwr.report.display import quiet

_INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Federated learning by layer-wise model recombination (FedMR).",
)
for command in (runs.run, runs.resume, runs.compare, views.plot, views.partition, views.units):
    app.command(cls=Command)(command)
app.add_typer(deploy.app, name="deploy")


def main() -> None:
    """Run the command line; a user's error ends with one line and status 1."""
    for name in (signal.SIGTERM, signal.SIGHUP):  # so that `kill` and a closed terminal stop Flower, too
        if signal.getsignal(name) is not signal.SIG_IGN:  # as under nohup
            signal.signal(name, signal.default_int_handler)
    quiet()
    try:
        app()
    except FedmrError as error:
        print(f"fedmr: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # after Ctrl-C Typer exits without a message
            print("fedmr: interrupted", file=sys.stderr)
        raise
