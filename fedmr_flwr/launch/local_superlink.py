"""A SuperLink for one simulation, with its own FLWR_HOME and ports, stopped with all its processes."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from fedmr_flwr.errors import EngineError
from fedmr_flwr.wire.flower import access
from fedmr_flwr.wire.flower.commands import Connection, ignoring_interrupts
from fedmr_flwr.wire.flower.environment import CONTROL_PORT, HOME, HTTP_PORT, simulation_environment
from fedmr_flwr.wire.flower.reasons import reason

_START_SECONDS = 60.0
_STOP_SECONDS = 10.0


class LocalSuperLink:
    """A SuperLink on this machine, starting or running.

    Not that of `flwr run`, which stays, and keeps the working directory and environment of its first caller.

    Args:
        home: its own folder.
        path: Python's, with which its processes find the app.
        log: the file to which Flower's output is appended.
        ray_address: the Ray cluster to join; "local" for a Ray of its own.
        ports: for commands, and for its own processes.

    Attributes:
        connection: to the SuperLink.
    """

    def __init__(self, home: Path, path: str, log: Path, ray_address: str, ports: tuple[int, int]) -> None:
        self._home, self._log, (control, self._http_port) = home, log, ports
        self.connection = Connection("local", simulation_environment(home, path, ray_address, ports))
        access.create(home, f"127.0.0.1:{self._http_port}")
        with log.open("ab") as file:
            self._log_start = file.tell()  # lines of an earlier server are before it
        self._superlink = self._start([
            sys.executable, "-P", "-m", "fedmr_flwr.wire.flower.superlink",
            "--insecure", "--simulation", *access.options(home),
            "--control-api-address", f"127.0.0.1:{control}", "--host", "127.0.0.1", "--port", str(self._http_port),
            "--database", str(home / "state.db"),
        ])  # fmt: skip
        self._superexec = self._start(
            access.superexec(home, f"127.0.0.1:{self._http_port}", ["--insecure"], self._superlink.pid)
        )

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as file:
            return subprocess.Popen(
                command,
                env=self.connection.env,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                # Otherwise Ctrl-C would reach it before it is stopped in order.
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Wait until the SuperLink is ready.

        Raises:
            EngineError: it ended, or is not ready within a minute.
        """
        deadline = time.monotonic() + _START_SECONDS
        # A proxy from the environment could not reach this machine's ports.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while time.monotonic() < deadline:
            self._check_alive()
            try:
                direct.open(f"http://127.0.0.1:{self._http_port}/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.2)
        raise EngineError(f"Flower's SuperLink was not ready within {_START_SECONDS:.0f} s: {self._reason()}")

    def simulation_died(self) -> bool:
        """Return whether no process of the simulation is left.

        Raises:
            EngineError: the SuperLink itself has ended.
        """
        self._check_alive()
        for process in self._family():
            with suppress(psutil.Error):
                if any("flwr-simulation" in argument for argument in process.cmdline()):
                    return False
        return True

    def output(self) -> str:
        """Return what the SuperLink and its processes have written."""
        return self._log.read_bytes()[self._log_start :].decode(errors="replace")

    def stop(self) -> None:
        """Stop the SuperLink and all processes that it started."""
        family = self._family()
        self._superlink.terminate()
        _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=_STOP_SECONDS)
        self._superlink.wait()
        self._superexec.wait()

    def _family(self) -> list[psutil.Process]:
        """Return the SuperLink and its descendants, found by its folder, which only they have in their environment.

        Not by their parents: Ray's processes lose theirs when the simulation is killed. A cluster that was joined has
        another environment; it is not included, and ends our clients itself after the simulation.
        """
        family = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid != os.getpid() and process.environ().get(HOME) == str(self._home):
                    family.append(process)
        return family

    def _check_alive(self) -> None:
        for name, process in (("SuperLink", self._superlink), ("SuperExec", self._superexec)):
            if process.poll() is not None:
                raise EngineError(f"Flower's {name} ended with status {process.returncode}: {self._reason()}")

    def _reason(self) -> str:
        return reason(self.output()) or f"see {self._log}"


@contextmanager
def local_superlink(
    path: str, log: Path, ray_address: str = "local", ports: tuple[int, int] | None = None
) -> Iterator[LocalSuperLink]:
    """Run a SuperLink inside the block, and stop it with all its processes.

    Args:
        path: Python's, with which its processes find the app.
        log: the file to which Flower's output is appended.
        ray_address: the Ray cluster to join; "local" for a Ray of its own.
        ports: for commands, and for its own processes; chosen if not given.

    Raises:
        EngineError: it does not start.
    """
    ports = ports or choose_ports()
    with tempfile.TemporaryDirectory(prefix="fedmr-flower-", ignore_cleanup_errors=True) as home:
        superlink = LocalSuperLink(Path(home), path, log, ray_address, ports)
        try:
            superlink.wait_until_ready()
            yield superlink
        finally:
            with ignoring_interrupts():
                superlink.stop()


def choose_ports() -> tuple[int, int]:
    """Return a SuperLink's ports for commands and for its processes: free ones unless the environment sets them.

    Raises:
        EngineError: a port from the environment is in use.
    """
    with ExitStack() as probes:  # both stay open until both are chosen, so that they differ
        control, http = (_port(name, probes.enter_context(socket.socket())) for name in (CONTROL_PORT, HTTP_PORT))
        return control, http


def _port(variable: str, probe: socket.socket) -> int:
    wanted = os.environ.get(variable)
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # like servers: a port that was just closed is free
    try:
        probe.bind(("127.0.0.1", int(wanted or 0)))
    except (OSError, ValueError, OverflowError):
        raise EngineError(
            f"port {wanted} of {variable} cannot be used, perhaps because another program listens on it; "
            "set a free port or unset the variable"
        ) from None
    return int(probe.getsockname()[1])
