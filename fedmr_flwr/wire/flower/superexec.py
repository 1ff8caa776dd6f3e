"""Flower's SuperExec with clients that are forks of one process, which has already imported PyTorch and Flower.

Flower starts a new process for each message, so that nothing of one client is left for the next, and imports
everything in it again, which takes a second and a half of a processor. The forked process imports the app
itself, in the version that was sent with the run.
"""

import multiprocessing
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

from flwr.supercore.cli import flower_superexec
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
from flwr.supercore.tls import validate_and_resolve_root_certificates
from flwr.supernode.runtime.run_clientapp import run_clientapp


class ForkingExecutor(SubprocessExecutor):
    """Runs clients in forked processes, and everything else as Flower does."""

    def __init__(self) -> None:
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        # The fork server itself never uses a GPU: a process that has initialised CUDA cannot be forked.
        self._context.set_forkserver_preload(["torch", run_clientapp.__module__])
        forkserver.ensure_running()

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Start the process of a task."""
        if spec.task_type is not TaskType.CLIENT_APP:
            return super().launch(spec)
        run = partial(
            run_clientapp,
            runtime_api_address=spec.runtime_api_address,
            token=spec.token,
            insecure=spec.insecure,
            certificates=validate_and_resolve_root_certificates(spec.root_certificates_path, spec.insecure),
            parent_pid=spec.parent_pid,
            runtime_dependency_install=spec.runtime_dependency_install,
        )
        self._context.Process(target=run).start()
        return LaunchResult.accepted()

    def close(self) -> None:
        """Stop the clients."""
        # Otherwise Python would wait at its end for clients that are still training.
        for process in multiprocessing.active_children():
            process.terminate()


def apply() -> None:
    """Let the SuperExec start its clients with `ForkingExecutor`."""
    vars(run_superexec)["get_executor"] = lambda *_arguments, **_options: ForkingExecutor()


def main() -> None:
    """Run `flower-superexec`."""
    apply()
    flower_superexec()
