"""The command line: `fedmr run`."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedmr_flwr import config
from fedmr_flwr.errors import FedmrError
from fedmr_flwr.runs import folder
from fedmr_flwr.runs.display import Display, quiet, table

_INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Federated learning by layer-wise model recombination (FedMR).",
)


@app.callback()
def _commands() -> None:
    """Keep `run` a command of its own while it is the only one."""


@app.command()
def run(
    conf: Annotated[Path, typer.Argument(help="A configuration file, such as conf/quickstart.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, nested keys with dots: training.lr=0.1")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="ray or in-process; short for engine=NAME.")] = None,
) -> None:
    """Train a federation and write its run folder."""
    extra = [f"engine={engine}"] if engine else []
    settings = folder.choose(config.load(conf, [*(overrides or []), *extra]))
    assert settings.run_dir is not None
    folder.check_free(settings.run_dir)
    console = Console()
    path = f"run folder: {settings.run_dir}"
    console.print(path, soft_wrap=True, highlight=False, markup=False)
    with Display(settings.rounds, console) as display:
        if settings.engine == "ray":
            from fedmr_flwr.engines import ray

            done = ray.run(settings, display)
        else:
            from fedmr_flwr import engines, server

            done = server.run(settings, engines.grid_of(settings), display)
    console.print(table(done.read_rows()))
    console.print(path, soft_wrap=True, highlight=False, markup=False)


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
