"""The Ray engine: Flower's simulation, started, followed and stopped as `flwr run` wants it."""

import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import EngineError, RunFolderError
from fedmr_flwr.launch import ray_cluster as cluster
from fedmr_flwr.launch.flower import Connection, app_folder, environment
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs.folder import RunFolder, launching
from fedmr_flwr.server.experiment import Experiment

_CONTROL_PORT = "FLWR_LOCAL_CONTROL_API_PORT"
_HTTP_PORT = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"
_PORTS = (_CONTROL_PORT, _HTTP_PORT)
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0


def run(settings: Settings, display: Display, prepared: RunFolder | None = None) -> RunFolder:
    """Run a federation in Flower's simulation, or go on with one.

    A SuperLink is started for this run alone, with a FLWR_HOME and free ports of its own, and stopped at the
    end. Its log is kept in the run folder as flower.log.

    Args:
        settings: what to run, with its folder.
        display: shows the rounds.
        prepared: the run's folder, if it is made already, perhaps by an earlier server that was stopped.

    Returns:
        The run folder, complete.

    Raises:
        FedmrError: the configuration, the data or the federation is at fault, or Flower failed.
    """
    ray_address = cluster.address_of(settings)
    cluster.check(settings, ray_address)
    out = None
    with ExitStack() as stack:
        home = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="fedmr-flower-", ignore_cleanup_errors=True))
        )
        if prepared is not None:
            out = launching(prepared, stack)
        try:
            with _superlink(home, ray_address) as flower:
                Experiment(settings)  # finds what is wrong while the SuperLink starts, before anything is written
                out = out or launching(RunFolder.create(settings), stack)
                flower.wait_until_ready()
                resources = {
                    "num-supernodes": settings.clients,
                    "client-resources-num-cpus": settings.client_cpus,
                    "client-resources-num-gpus": float(settings.ray.client_gpus),
                }
                connection = Connection("local", flower.env)
                run_id = connection.submit(settings, out, resources)
                connection.follow(run_id, out, display, flower.gone)
        except BaseException as error:
            if out is not None:
                with suppress(RunFolderError), out.locked():  # another's run that goes on there has not failed
                    out.fail(error)
            raise
        finally:
            if out is not None:
                _keep_log(home / "flower.log", out.path / "flower.log")
    return out


def _keep_log(log: Path, kept: Path) -> None:
    """Add Flower's log to what an earlier server left, if there is one and there is room."""
    with suppress(OSError), kept.open("ab") as file:
        file.write(log.read_bytes())


class _SuperLink:
    """A SuperLink of our own, and `flwr` commands that talk to it."""

    def __init__(self, home: Path, ray_address: str = "local") -> None:
        self.home = home
        self.log = home / "flower.log"
        self.env = environment(
            FLWR_HOME=str(home),
            # Large messages in huge pages: serialising a large population takes a third of the time.
            GLIBC_TUNABLES=os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
            # Ray hands Python's path on, so that actors on other machines find the app, too.
            PYTHONPATH=os.pathsep.join(filter(None, [str(app_folder()), os.environ.get("PYTHONPATH")])),
        )
        # Never left out: without it Ray joins whatever cluster `ray start` left on this machine.
        self.env[cluster.ADDRESS] = ray_address
        self.env |= _ports()
        self.env["NO_PROXY"] = self.env["no_proxy"] = ",".join(
            filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1", "localhost"])
        )
        command = [
            "flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess",
            "--control-api-address", f"127.0.0.1:{self.env[_CONTROL_PORT]}",
            "--host", "127.0.0.1", "--port", self.env[_HTTP_PORT],
            "--database", str(home / "state.db"),
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env=self.env,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Wait until the SuperLink answers."""
        deadline = time.monotonic() + _START_SECONDS
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while time.monotonic() < deadline:
            self._check_alive()
            try:
                direct.open(f"http://127.0.0.1:{self.env[_HTTP_PORT]}/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.2)
        raise EngineError(f"Flower's SuperLink did not answer in {_START_SECONDS:.0f} s: {self._last_words()}")

    def stop(self) -> None:
        """End the SuperLink, by its process id, and whatever it started."""
        family = self._family()
        self.process.terminate()
        _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=_STOP_SECONDS)
        self.process.wait()

    def _family(self) -> list[psutil.Process]:
        """Find the SuperLink and its descendants by the folder that only they were given.

        Not by parents: Ray's processes leave theirs when the simulation is killed. A cluster that was joined has
        another environment: it is none of them, and ends our clients itself when the simulation has gone.
        """
        family = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid != os.getpid() and process.environ().get("FLWR_HOME") == str(self.home):
                    family.append(process)
        return family

    def gone(self) -> bool:
        """Tell whether the simulation has ended without a word.

        Raises:
            EngineError: the SuperLink itself has.
        """
        self._check_alive()
        return not self._simulating()

    def _simulating(self) -> bool:
        """Tell whether the simulation's process is there: cheaper than `flwr list`, which takes seconds."""
        for process in self._family():
            with suppress(psutil.Error):
                if any("flwr-simulation" in argument for argument in process.cmdline()):
                    return True
        return False

    def _check_alive(self) -> None:
        if self.process.poll() is not None:
            raise EngineError(f"Flower's SuperLink ended with status {self.process.returncode}: {self._last_words()}")

    def _last_words(self) -> str:
        """Return the last line of the SuperLink's log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")


@contextmanager
def _superlink(home: Path, ray_address: str) -> Iterator[_SuperLink]:
    flower = _SuperLink(home, ray_address)
    try:
        yield flower
    finally:
        patience = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave Ray behind
        flower.stop()
        signal.signal(signal.SIGINT, patience)


def _ports() -> dict[str, str]:
    """Return two ports: those that the environment asks for, or free ones.

    Raises:
        EngineError: one asked for is taken.
    """
    with ExitStack() as probes:  # both stay open until both are known, so that they differ
        return {variable: _port(variable, probes.enter_context(socket.socket())) for variable in _PORTS}


def _port(variable: str, probe: socket.socket) -> str:
    wanted = os.environ.get(variable)
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: what has just ended counts as free
    try:
        probe.bind(("127.0.0.1", int(wanted or 0)))
    except (OSError, ValueError, OverflowError):
        raise EngineError(
            f"port {wanted} of {variable} cannot be used, perhaps another program listens there; "
            "name a free port or unset the variable"
        ) from None
    return str(probe.getsockname()[1])
