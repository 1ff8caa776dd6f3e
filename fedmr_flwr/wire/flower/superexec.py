"""Flower's SuperExec, which starts the processes of a SuperLink or SuperNode.

Flower passes each process its token on the command line, which every account of the machine can read; here it is in
a private file. Clients are forks of one process, which has already imported PyTorch and Flower: Flower starts a new
process for each message, so that nothing of one client is left for the next, and imports everything in it again,
which takes a second and a half of a processor. The forked process imports the app itself, in the version that was
sent with the run.
"""

import multiprocessing
import os
import signal
import subprocess
import tempfile
from contextlib import suppress
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from flwr.supercore.cli import flower_superexec
from flwr.supercore.constant import TASK_TYPE_TO_APPIO_API_ADDRESS_ARG, TASK_TYPE_TO_COMMAND
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
from flwr.supercore.tls import get_client_tls_args, validate_and_resolve_root_certificates
from flwr.supernode.runtime.run_clientapp import run_clientapp

# What every client would import before it trains.
_PRELOADED = ["torch", run_clientapp.__module__]
# Python's exit code of a forked process whose fork server has died.
_ORPHANED = 255


class PrivateExecutor(SubprocessExecutor):
    """Starts processes as Flower does, but with their tokens in files."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fedmr-tasks-", ignore_cleanup_errors=True)

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Start the process of a task."""
        path = Path(self._folder.name, str(spec.task_id))
        path.write_text(spec.token, encoding="ascii")
        # With its output, which Flower discards: what is written after a crash of Ray is nowhere else.
        subprocess.Popen([
            TASK_TYPE_TO_COMMAND[spec.task_type],
            TASK_TYPE_TO_APPIO_API_ADDRESS_ARG[spec.task_type], spec.runtime_api_address,
            "--token-file", str(path),
            *get_client_tls_args(spec.insecure, spec.root_certificates_path),
            *([] if spec.parent_pid is None else ["--parent-pid", str(spec.parent_pid)]),
        ])  # fmt: skip
        return LaunchResult.accepted()

    def close(self) -> None:
        """Remove the tokens."""
        self._folder.cleanup()


class ForkingExecutor(SubprocessExecutor):
    """Runs clients in forked processes."""

    def __init__(self) -> None:
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        # The fork server itself never uses a GPU: a process that has initialised CUDA cannot be forked.
        self._context.set_forkserver_preload(_PRELOADED)
        self._clients: list[ForkServerProcess] = []
        forkserver.ensure_running()

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Start the process of a client."""
        run = partial(
            run_clientapp,
            runtime_api_address=spec.runtime_api_address,
            token=spec.token,
            insecure=spec.insecure,
            certificates=validate_and_resolve_root_certificates(spec.root_certificates_path, spec.insecure),
            parent_pid=spec.parent_pid,
            runtime_dependency_install=spec.runtime_dependency_install,
        )
        client = self._context.Process(target=run)
        client.start()
        self._clients.append(client)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Look for clients that were killed.

        Raises:
            SystemExit: one was, so that no reply will come, for which the node would wait forever.
        """
        for client in self._clients:
            if client.exitcode is not None and (client.exitcode < 0 or client.exitcode == _ORPHANED):
                how = "with its fork server" if client.exitcode == _ORPHANED else f"by signal {-client.exitcode}"
                raise SystemExit(f"a client's process was killed {how}, perhaps because memory ran out")
        self._clients = [client for client in self._clients if client.exitcode is None]

    def close(self) -> None:
        """Stop the clients."""
        # Otherwise Python would wait at its end for clients that are still training.
        for client in self._clients:
            # Not `terminate`, which believes that a client has ended with its fork server.
            if client.exitcode in (None, _ORPHANED) and client.pid:
                with suppress(ProcessLookupError):
                    os.kill(client.pid, signal.SIGTERM)


def apply(clients: bool) -> None:
    """Let the SuperExec start its processes with the executor for clients, or for everything else."""
    executor = ForkingExecutor if clients else PrivateExecutor
    vars(run_superexec)["get_executor"] = lambda *_arguments, **_options: executor()


def main(clients: bool) -> None:
    """Run `flower-superexec`.

    Args:
        clients: whether for the clients of a node, or for the servers of a SuperLink.
    """
    apply(clients)
    flower_superexec()
