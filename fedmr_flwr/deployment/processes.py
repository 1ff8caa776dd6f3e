"""The processes of a deployment: a SuperLink that admits the nodes of its folder, and SuperNodes."""

import os
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from fedmr_flwr.deployment import commands
from fedmr_flwr.deployment.admission import admit
from fedmr_flwr.deployment.certificates import check_node, check_server
from fedmr_flwr.deployment.folders import AUTHORITY, CERTIFICATE, NODE_KEY, SERVER_KEY, NodeSettings, ServerSettings
from fedmr_flwr.errors import ConfigError, EngineError
from fedmr_flwr.wire.flower.commands import Connection, ignoring_interrupts
from fedmr_flwr.wire.flower.environment import HOME

_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
# Seconds in which a SuperLink may regard a killed node as connected, and so reject it.
_REFUSED_SECONDS, _RETRY_SECONDS = 90.0, 10.0
# Seconds between looks at the processes; and before one that died is started again, lest it die in a busy loop.
_LOOK_SECONDS, _PAUSE_SECONDS = 0.2, 1.0


def check_account(allow_root: bool) -> None:
    """Check which account runs a server or node.

    Args:
        allow_root: accept root.

    Raises:
        ConfigError: it is root.
    """
    if os.geteuid() == 0 and not allow_root:
        raise ConfigError(
            "this is root, and the code of every run would have its rights; use an account that owns only the folder "
            "and can read the data, or add --allow-root"
        )


def run_superlink(folder: Path, server: ServerSettings, insecure: bool, report: Callable[[str], None]) -> None:
    """Run a SuperLink in the foreground, until it is stopped.

    Args:
        folder: of the server.
        server: its settings.
        insecure: without TLS and keys, on this machine only.
        report: called with each line for the user.

    Raises:
        ConfigError: it would be reachable from other machines without TLS, or its certificate is not valid.
        EngineError: it does not start, rejects a node's key, or ends unexpectedly.
    """
    command = commands.superlink(folder, server, insecure)
    if not insecure:
        check_server(folder / AUTHORITY, folder / CERTIFICATE, folder / SERVER_KEY, server.hosts)
    env = commands.configure_server(folder, server, insecure)
    with _running(command, env, folder) as superlink:
        _wait(superlink, server, env)
        if not insecure:
            # After the start, because only a running SuperLink accepts keys.
            admitted, new, revoked = admit(folder, env)
            report(f"admitted {admitted} nodes ({new} new)" + f", revoked {revoked}" * bool(revoked))
        port = server.fleet_port if commands.over_grpc() else server.port
        report(f"ready for nodes on {server.listen}:{port}; stop it with Ctrl-C")
        home = shlex.quote(env[HOME])
        report(f"export {HOME}={home}  # then: fedmr run CONF --superlink {commands.SUPERLINK}")
        executor = commands.superlink_executor(folder, server, superlink.pid, insecure)
        while True:
            with _running(executor, env, folder) as superexec:
                _wait_for_any(superlink, superexec)
            if superlink.poll() is not None:
                raise EngineError(f"Flower's SuperLink ended with status {superlink.poll()}; see its output above")
            # The run that it had started ends with it; the nodes stay.
            report(f"Flower's SuperExec ended with status {superexec.poll()}; starting it again")
            time.sleep(_PAUSE_SECONDS)


def run_supernode(folder: Path, node: NodeSettings, insecure: bool, report: Callable[[str], None]) -> None:
    """Run a SuperNode in the foreground, until it is stopped.

    If one of the processes that train dies, the node leaves properly and connects again: so the server learns at once
    that no reply will come.

    Args:
        folder: of the node.
        node: its settings.
        insecure: without TLS and keys, to a server on this machine only.
        report: called with each line for the user.

    Raises:
        ConfigError: it has no data, it would connect to another machine without TLS, or a certificate is not valid.
        EngineError: it ends unexpectedly, more than a minute and a half after its start; before, it is restarted.
    """
    command = commands.supernode(folder, node, insecure)
    if not insecure:
        check_node(folder / AUTHORITY, folder / NODE_KEY)
    env = commands.configure_node(folder)
    began = time.monotonic()
    while True:
        with (
            _running(command, env, folder) as supernode,
            _running(commands.supernode_executor(folder, node, supernode.pid), env, folder) as superexec,
        ):
            _wait_for_any(supernode, superexec)
            ended = supernode.poll()
        if ended is None:
            report(f"what starts the clients ended with status {superexec.poll()}; the node connects again")
            time.sleep(_PAUSE_SECONDS)
            began = time.monotonic()
            continue
        if ended < 0:  # killed, by the system for its memory or by itself, see `wire.flower.supernode`
            began = time.monotonic()
        # After this time it must have ended for another reason, which a restart would hide.
        if time.monotonic() - began > _REFUSED_SECONDS:
            raise EngineError(f"Flower's SuperNode ended with status {ended}; see its output above")
        report(
            f"the SuperNode ended, see its output above; trying again in {_RETRY_SECONDS:g} s, because a node that "
            "was killed is admitted again only after a minute"
        )
        time.sleep(_RETRY_SECONDS)


@contextmanager
def _running(command: list[str], env: dict[str, str], folder: Path) -> Iterator[psutil.Popen]:
    """Run one of Flower's programs inside the block, in the foreground."""
    # In its folder, because relative paths in its settings are meant from there. No input, so that nothing waits for
    # it.
    process = psutil.Popen(command, env=env, cwd=folder, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        with ignoring_interrupts():
            _stop(process)


def _wait_for_any(*processes: psutil.Popen) -> None:
    """Wait until one of the processes ends."""
    while all(process.poll() is None for process in processes):
        time.sleep(_LOOK_SECONDS)


def _stop(process: psutil.Popen) -> None:
    """Stop a process and its descendants."""
    family: list[psutil.Process] = [process]
    with suppress(psutil.NoSuchProcess):
        # Before the process ends: afterwards its descendants cannot be found any more.
        family += process.children(recursive=True)
    with suppress(psutil.NoSuchProcess):
        process.terminate()
    _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
    for one in alive:  # for instance clients that still try to reach their node
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(alive)


def _wait(process: psutil.Popen, server: ServerSettings, env: dict[str, str]) -> None:
    """Wait until the SuperLink replies to commands."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EngineError(
                f"Flower's SuperLink ended with status {process.returncode}; see its output above, perhaps a port is "
                "in use"
            )
        # A command, because the next step is one; an open port does not show that commands work. The port first,
        # because a command takes a second of the processor on which the SuperLink is starting.
        with suppress(EngineError, OSError):
            socket.create_connection(commands.control_endpoint(server), timeout=1).close()
            Connection(commands.SUPERLINK, env).command("list", commands.SUPERLINK)
            return
        time.sleep(0.3)
    raise EngineError(f"Flower's SuperLink did not reply within {_START_SECONDS:.0f} s")
