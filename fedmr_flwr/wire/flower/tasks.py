"""Flower's run and its task, without which no message can be created."""

from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["Run", "enter_task"]


def enter_task() -> Run:
    """Return an empty description of this process's run; set a task for the process if Flower has set none."""
    if TaskIdentity._run_id is None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    return Run.create_empty(run_id=TaskIdentity.run_id)
