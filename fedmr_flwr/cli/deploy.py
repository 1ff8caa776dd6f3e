"""The commands of a deployment: `fedmr deploy init`, `server` and `node`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from fedmr_flwr.cli.arguments import Command, print_line

Dir = Annotated[Path, typer.Argument(metavar="DIR", hidden=True)]
Insecure = Annotated[bool, typer.Option("--insecure", help="Without TLS and keys; on this machine only.")]

AllowRoot = Annotated[
    bool, typer.Option("--allow-root", help="Also as root, whose rights the code of every run then has.")
]

# In the folder of a server or node, while it runs.
_LOCK = ".lock"

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, suggest_commands=False, help="Run clients on their own machines."
)


@app.callback()
def private() -> None:
    """Keep other accounts of this machine from all files that these commands, and the processes they start, make."""
    os.umask(0o077)


@app.command(cls=Command)
def init(
    out: Dir,
    host: Annotated[
        list[str], typer.Option(metavar="NAME", help="A name or address of the server; may be repeated.")
    ],
    nodes: Annotated[int, typer.Option(metavar="NUMBER", min=1, help="The number of nodes.")],
) -> None:
    """Create certificates, keys and settings.

    DIR is a new folder. It will contain a folder for the server, one for each node, and a README.md with the commands
    for each machine.
    """
    from fedmr_flwr.deployment import folders, guide
    from fedmr_flwr.files import write_aside

    settings = folders.create(out, host, nodes)
    write_aside(out / "README.md", guide.text(*settings).encode())
    print_line(f"see {out / 'README.md'} for where to copy the folders and which commands to run")


@app.command(cls=Command)
def server(folder: Dir, insecure: Insecure = False, allow_root: AllowRoot = False) -> None:
    """Run a SuperLink.

    DIR is the server's folder, created by `fedmr deploy init`. Only nodes with keys in DIR/nodes may connect.
    """
    from fedmr_flwr.deployment import folders, processes
    from fedmr_flwr.files import locking

    processes.check_account(allow_root)
    path = folder.absolute()
    settings = folders.read_server(path)
    # A second one would exchange the secrets of the first, whose tasks nobody could take any more.
    with locking(path / _LOCK):
        processes.run_superlink(path, settings, insecure, print_line)


@app.command(cls=Command)
def node(folder: Dir, insecure: Insecure = False, allow_root: AllowRoot = False) -> None:
    """Run a SuperNode, which trains on this machine.

    DIR is the node's folder, created by `fedmr deploy init`; set `data` in its node.yaml to the node's examples.
    """
    from fedmr_flwr.deployment import folders, processes
    from fedmr_flwr.files import locking

    processes.check_account(allow_root)
    path = folder.absolute()
    settings = folders.read_node(path)
    with locking(path / _LOCK):  # as a server
        processes.run_supernode(path, settings, insecure, print_line)


@app.command("app-sha256", cls=Command)
def app_sha256() -> None:
    """Print the hash of the app that nodes get.

    It is the SHA-256 of what `fedmr run` of this version sends. With it as `app-sha256` in its node.yaml a node runs
    no other app.
    """
    from fedmr_flwr.launch import flower

    print_line(flower.app_sha256())
