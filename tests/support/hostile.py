"""A client that answers a node's messages in its own way, through the port that the node has for its clients."""

import socket
import time
from contextlib import closing, suppress

from flwr.app import Message, MetricRecord, RecordDict
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.superexec.run_superexec import _SUPEREXEC_AUTH_METHODS
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output


def answer_all(port, key, train, until, examples=10):
    """Answer each message of a node that starts no clients itself, until a run has ended.

    Args:
        port: the node's, on this machine.
        key: with which it lets its own processes take tasks.
        train: returns the content of the reply to a message to train.
        until: returns whether the run has ended.
        examples: the number that the client states.
    """
    _await(port)
    with closing(
        _link(port, SuperExecAuthHttpInterceptor(master_secret=key, protected_methods=_SUPEREXEC_AUTH_METHODS))
    ) as asks:
        _answer_all(port, asks, train, until, examples)


def _answer_all(port, asks, train, until, examples):
    while not until():
        task = asks.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        if not task.token:
            time.sleep(0.05)
            continue
        with closing(_link(port, RuntimeTokenHttpInterceptor(task.token))) as own:
            message, context, _, _ = pull_task_input(own)
            if message.metadata.message_type == "train":
                content = train(message)
            else:
                known = {"client": context.node_config["partition-id"], "num-examples": examples}
                content = RecordDict({"metrics": MetricRecord(known)})
            push_message(own, Message(content, reply_to=message), context)
            push_task_output(own, context, "completed", "")


def _await(port, seconds=60):
    """Wait until a node listens."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise TimeoutError(port)


def _link(port, *interceptors):
    return RuntimeHttpClient.from_server_address(
        server_address=f"127.0.0.1:{port}", insecure=True, root_certificates=None, retry_invoker=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), *interceptors],
    )  # fmt: skip
