"""Running the parts of a deployment: a SuperLink that lets the nodes of its folder in, and SuperNodes."""

import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from fedmr_flwr.deployment import commands
from fedmr_flwr.deployment.admission import admit
from fedmr_flwr.deployment.folders import Node, Server
from fedmr_flwr.errors import EngineError
from fedmr_flwr.files import writing
from fedmr_flwr.launch.flower import Connection, environment

_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
# So long a SuperLink takes a node that was killed for one that is still there, and refuses to let it in again.
_REFUSED_SECONDS, _AGAIN_SECONDS = 90.0, 10.0


def serve(folder: Path, server: Server, insecure: bool, say: Callable[[str], None]) -> None:
    """Run a SuperLink in the foreground, until it is stopped.

    Args:
        folder: of the server.
        server: its settings.
        insecure: without TLS and keys, on this machine only.
        say: prints a line.

    Raises:
        ConfigError: it would be insecure and reachable from elsewhere.
        EngineError: it does not start, refuses a node's key, or ends by itself.
    """
    command = commands.superlink(folder, server, insecure)
    env = commands.configure(folder, server, insecure)
    with _running(command, env, folder) as process:
        _wait(process, env)
        if not insecure:
            admitted, new, revoked = admit(folder, env)
            say(f"{admitted} nodes may connect, {new} of them are new" + f", {revoked} may no more" * bool(revoked))
            if not commands.over_grpc():
                say(
                    f"whoever reaches port {server.port} and has ca.crt can also submit runs and let nodes in: see "
                    "'Firewall' in docs/deployment.md"
                )
        port = server.fleet_port if commands.over_grpc() else server.port
        say(f"ready for nodes on {server.listen}:{port}; stop it with Ctrl-C")
        home = shlex.quote(env["FLWR_HOME"])
        say(f"export FLWR_HOME={home}  # then: fedmr run CONF --superlink {commands.FEDERATION}")
        raise EngineError(f"Flower's SuperLink ended with status {process.wait()}; its lines above say why")


def train(folder: Path, node: Node, insecure: bool, say: Callable[[str], None]) -> None:
    """Run a SuperNode in the foreground, until it is stopped.

    Args:
        folder: of the node.
        node: its settings.
        insecure: without TLS and keys, to a server on this machine only.
        say: prints a line.

    Raises:
        ConfigError: it has no data, or it would be insecure and go elsewhere.
        EngineError: it ends by itself, also when it is tried again for some time after its start.
    """
    command = commands.supernode(folder, node, insecure)
    home = folder / "flower"
    with writing(home):
        home.mkdir(exist_ok=True)
    began = time.monotonic()
    while True:
        with _running(command, environment(FLWR_HOME=str(home)), folder) as process:
            status = process.wait()
        if time.monotonic() - began > _REFUSED_SECONDS:
            raise EngineError(f"Flower's SuperNode ended with status {status}; its lines above say why")
        say(
            f"the SuperNode ended, its lines above say why; trying again in {_AGAIN_SECONDS:g} s, because a node "
            "that was killed is let in again only after a minute"
        )
        time.sleep(_AGAIN_SECONDS)


@contextmanager
def _running(command: list[str], env: dict[str, str], folder: Path) -> Iterator[psutil.Popen]:
    """Run a part of Flower inside the block, in the foreground."""
    process = psutil.Popen(command, env=env, cwd=folder, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        patience = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave it behind
        family: list[psutil.Process] = [process]
        with suppress(psutil.NoSuchProcess):
            family += process.children(recursive=True)
        with suppress(psutil.NoSuchProcess):
            process.terminate()
        _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
        for one in alive:  # clients, for instance, that still look for their node
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(alive)
        signal.signal(signal.SIGINT, patience)


def _wait(process: psutil.Popen, env: dict[str, str]) -> None:
    """Wait until the SuperLink answers."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EngineError(
                f"Flower's SuperLink ended with status {process.returncode}; its lines above say why, perhaps a port "
                "is in use"
            )
        with suppress(EngineError):
            Connection(commands.FEDERATION, env).command("list", commands.FEDERATION)
            return
        time.sleep(0.3)
    raise EngineError(f"Flower's SuperLink did not answer in {_START_SECONDS:.0f} s")
