"""Running the parts of a deployment: a SuperLink that admits the nodes of its folder, and SuperNodes."""

import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from fedmr_flwr.deployment import commands
from fedmr_flwr.deployment.admission import admit
from fedmr_flwr.deployment.folders import NodeSettings, ServerSettings
from fedmr_flwr.errors import EngineError
from fedmr_flwr.files import writing
from fedmr_flwr.wire.flower.commands import Connection, ignoring_interrupts
from fedmr_flwr.wire.flower.environment import HOME, environment

_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
# How long a SuperLink takes a node that was killed for one that is connected, and refuses it.
_REFUSED_SECONDS, _RETRY_SECONDS = 90.0, 10.0


def run_superlink(folder: Path, server: ServerSettings, insecure: bool, report: Callable[[str], None]) -> None:
    """Run a SuperLink in the foreground, until it is stopped.

    Args:
        folder: of the server.
        server: its settings.
        insecure: without TLS and keys, on this machine only.
        report: called with each line for the user.

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
            report(f"admitted {admitted} nodes ({new} new)" + f", revoked {revoked}" * bool(revoked))
            if not commands.over_grpc():
                report(
                    f"whoever reaches port {server.port} and has ca.crt can also submit runs and admit nodes: see "
                    "'Firewall' in docs/deployment.md"
                )
        port = server.fleet_port if commands.over_grpc() else server.port
        report(f"ready for nodes on {server.listen}:{port}; stop it with Ctrl-C")
        home = shlex.quote(env[HOME])
        report(f"export {HOME}={home}  # then: fedmr run CONF --superlink {commands.SUPERLINK}")
        raise EngineError(f"Flower's SuperLink ended with status {process.wait()}; its lines above say why")


def run_supernode(folder: Path, node: NodeSettings, insecure: bool, report: Callable[[str], None]) -> None:
    """Run a SuperNode in the foreground, until it is stopped.

    Args:
        folder: of the node.
        node: its settings.
        insecure: without TLS and keys, to a server on this machine only.
        report: called with each line for the user.

    Raises:
        ConfigError: it has no data, or it would be insecure and go elsewhere.
        EngineError: it ends by itself; in the first minute and a half it is started again instead.
    """
    command = commands.supernode(folder, node, insecure)
    home = folder / "flower"
    with writing(home):
        home.mkdir(exist_ok=True)
    began = time.monotonic()
    while True:
        with _running(command, environment(home), folder) as process:
            status = process.wait()
        if time.monotonic() - began > _REFUSED_SECONDS:
            raise EngineError(f"Flower's SuperNode ended with status {status}; its lines above say why")
        report(
            f"the SuperNode ended, its lines above say why; trying again in {_RETRY_SECONDS:g} s, because a node "
            "that was killed is admitted again only after a minute"
        )
        time.sleep(_RETRY_SECONDS)


@contextmanager
def _running(command: list[str], env: dict[str, str], folder: Path) -> Iterator[psutil.Popen]:
    """Run a part of Flower inside the block, in the foreground."""
    process = psutil.Popen(command, env=env, cwd=folder, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        with ignoring_interrupts():
            _stop(process)


def _stop(process: psutil.Popen) -> None:
    """End a process and those that it started."""
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
            Connection(commands.SUPERLINK, env).command("list", commands.SUPERLINK)
            return
        time.sleep(0.3)
    raise EngineError(f"Flower's SuperLink did not answer in {_START_SECONDS:.0f} s")
