"""`SuperLinkGrid` over a Grid that plays a SuperLink: replies come when the test lets them."""

from types import SimpleNamespace

import pytest
from flwr.app import Message, RecordDict

from fedmr_flwr.engines import superlink_grid
from fedmr_flwr.engines.superlink_grid import SuperLinkGrid
from fedmr_flwr.records import fault


@pytest.fixture
def link(grid_of, answer, monkeypatch):
    """Three nodes; `link.script` is called before each look for replies, and `link.held` keeps back some nodes'."""
    grid = grid_of(lambda message, client: RecordDict(), clients=3)
    nodes = grid.get_node_ids()
    grid.activated = dict.fromkeys(nodes, "10:00")
    grid.held, grid.looks, grid.script = set(), 0, lambda look: None
    grid.clock = 0.0
    pull, destinations = grid.pull_messages, {}

    def push(messages):
        for message in messages:
            numbers = original([message])
            destinations[numbers[0]] = message.metadata.dst_node_id
        return [message.metadata.message_id for message in messages]

    def look(identifiers):
        grid.looks += 1
        grid.script(grid.looks)
        return pull([one for one in identifiers if destinations[one] not in grid.held])

    def sleep(seconds):
        grid.clock += seconds

    original = grid.push_messages
    monkeypatch.setattr(grid, "push_messages", push)
    monkeypatch.setattr(grid, "pull_messages", look)
    monkeypatch.setattr(
        grid, "get_nodes",
        lambda: [SimpleNamespace(node_id=n, last_activated_at=at) for n, at in grid.activated.items()],
    )  # fmt: skip
    monkeypatch.setattr(superlink_grid, "time", SimpleNamespace(monotonic=lambda: grid.clock, sleep=sleep))
    return grid


def messages(link):
    return [Message(RecordDict(), node, "train") for node in link.get_node_ids()]


def test_replies_are_fetched_as_they_come_without_waiting_three_seconds(link):
    late = link.get_node_ids()[1]
    link.held = {late}
    link.script = lambda look: link.held.clear() if look == 5 else None
    sent = messages(link)
    replies = SuperLinkGrid(link).send_and_receive(sent)
    ids = [message.metadata.message_id for message in sent]
    found = [reply.metadata.reply_to_message_id for reply in replies]
    assert sorted(found) == sorted(ids)
    assert found[-1] == ids[1]
    assert link.clock < 1


def test_a_message_that_a_node_forgot_comes_back_as_lost_and_a_reply_it_sent_before_counts(link):
    first, second, _ = link.get_node_ids()
    link.held = {first, second}

    def script(look):
        if look == 20:  # both begin anew, the second after it has sent its reply
            link.activated[first] = link.activated[second] = "10:05"
            link.held = {first}

    link.script = script
    sent = messages(link)
    replies = {reply.metadata.reply_to_message_id: reply for reply in SuperLinkGrid(link).send_and_receive(sent)}
    assert [replies[message.metadata.message_id].has_content() for message in sent] == [False, True, True]
    assert fault(replies[sent[0].metadata.message_id], sent[0]) == (
        "node-lost", "its node was started again and has forgotten the message",
    )  # fmt: skip


def test_a_node_that_only_goes_away_is_waited_for_until_the_time_is_over(link):
    gone = link.get_node_ids()[2]
    link.held = {gone}
    link.script = lambda look: link.activated.pop(gone, None)
    replies = SuperLinkGrid(link).send_and_receive(messages(link), timeout=30)
    assert len(replies) == 2
    assert 30 < link.clock < 31


def test_what_the_superlink_does_not_take_is_not_waited_for(link, monkeypatch):
    push = link.push_messages
    monkeypatch.setattr(link, "push_messages", lambda sent: [*push(sent)[:2], ""])
    assert len(SuperLinkGrid(link).send_and_receive(messages(link))) == 2
