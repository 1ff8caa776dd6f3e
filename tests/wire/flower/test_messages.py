"""What Flower fills in when a message travels, and what a process needs to make one."""

import subprocess
import sys
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from flwr.superlink.grid import InMemoryGrid

from fedmr_flwr.wire.flower.messages import ErrorCode, assign_id, set_reply_to
from fedmr_flwr.wire.flower.simulation import is_simulation
from fedmr_flwr.wire.flower.tasks import enter_task

ROOT = Path(__file__).parents[3]
MESSAGE = """
from flwr.app import Message, RecordDict
{}
Message(RecordDict(), 1, "train")
"""


def message():
    return Message(RecordDict(), 1, "train")


def test_message_gets_an_identifier():
    first, second = assign_id(message()), assign_id(message())
    assert first.metadata.message_id
    assert first.metadata.message_id != second.metadata.message_id


def test_reply_can_change_its_message():
    second = assign_id(message())
    reply = Message(RecordDict(), reply_to=second)
    assert reply.metadata.reply_to_message_id == second.metadata.message_id
    first = assign_id(Message(RecordDict(), 7, "train"))
    set_reply_to(reply, first)
    assert (reply.metadata.reply_to_message_id, reply.metadata.src_node_id) == (first.metadata.message_id, 7)


def test_error_codes_have_known_numbers():
    names = ["CLIENT_APP_RAISED_EXCEPTION", "MESSAGE_UNAVAILABLE", "REPLY_MESSAGE_UNAVAILABLE", "NODE_UNAVAILABLE"]
    assert [getattr(ErrorCode, name) for name in names] == [2, 3, 4, 5]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entered", "status"), [("", 1), ("from fedmr_flwr.wire.flower import tasks; tasks.enter_task()", 0)]
)
def test_messages_need_a_task(entered, status):
    command = [sys.executable, "-c", MESSAGE.format(entered)]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert not status or "is not set" in done.stderr


def test_given_task_is_kept():
    assert enter_task().run_id == enter_task().run_id == message().metadata.run_id


def test_recognises_a_simulation(grid_of):
    assert is_simulation(object.__new__(InMemoryGrid))
    assert not is_simulation(grid_of(lambda message, client: RecordDict(), clients=1))
