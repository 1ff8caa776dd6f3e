"""`SuperLinkGrid` over a Grid that plays a SuperLink: replies come when the test lets them."""

from types import SimpleNamespace

import pytest
from flwr.app import Error, Message, RecordDict

from fedmr_flwr.wire.checks import find_problem
from fedmr_flwr.wire.flower.messages import ErrorCode
from fedmr_flwr.wire.grids import superlink as superlink_grid
from fedmr_flwr.wire.grids.superlink import SuperLinkGrid


@pytest.fixture
def link(grid_of, answer, monkeypatch):
    """Three nodes; `link.script` is called before each look for replies, and `link.held` keeps back some nodes'."""
    grid = grid_of(lambda message, client: RecordDict(), clients=3)
    nodes = grid.get_node_ids()
    grid.activated = dict.fromkeys(nodes, "10:00")
    grid.held, grid.looks, grid.script = set(), 0, lambda look: None
    grid.clock, grid.questions = 0.0, {}
    pull, destinations = grid.pull_messages, {}

    def push(messages):
        for message in messages:
            numbers = original([message])
            destinations[numbers[0]] = message.metadata.dst_node_id
            grid.questions[numbers[0]] = message
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


def test_replies_are_fetched_as_they_come(link):
    late = link.get_node_ids()[1]
    link.held = {late}
    link.script = lambda look: link.held.clear() if look == 5 else None
    sent = messages(link)
    replies = SuperLinkGrid(link).send_and_receive(sent)
    ids = [message.metadata.message_id for message in sent]
    found = [reply.metadata.reply_to_message_id for reply in replies]
    assert sorted(found) == sorted(ids)
    assert found[-1] == ids[1]
    assert link.clock < 2


def test_restarted_node_fails_its_messages(link):
    first, second, _ = link.get_node_ids()
    link.held = {first, second}

    def script(look):
        if look == 20:  # both are restarted, the second after it has sent its reply
            link.activated[first] = link.activated[second] = "10:05"
            link.held = {first}

    link.script = script
    sent = messages(link)
    replies = {reply.metadata.reply_to_message_id: reply for reply in SuperLinkGrid(link).send_and_receive(sent)}
    assert [replies[message.metadata.message_id].has_content() for message in sent] == [False, True, True]
    assert find_problem(replies[sent[0].metadata.message_id], sent[0]) == (
        "node-lost", "its node is gone or was restarted, and has lost the message",
    )  # fmt: skip


def test_silent_node_is_awaited_until_timeout(link):
    link.held = {link.get_node_ids()[2]}
    replies = SuperLinkGrid(link).send_and_receive(messages(link), timeout=30)
    assert len(replies) == 2
    assert 30 < link.clock < 31


def test_gone_node_fails_its_messages(link):
    gone = link.get_node_ids()[2]
    link.held = {gone}
    link.script = lambda look: link.activated.pop(gone, None) if look == 20 else None
    sent, grid = messages(link), SuperLinkGrid(link)
    replies = {reply.metadata.reply_to_message_id: reply for reply in grid.send_and_receive(sent, timeout=60)}
    assert len(replies) == 3
    assert find_problem(replies[sent[2].metadata.message_id], sent[2])[0] == "node-lost"
    assert link.clock < 15


def test_refused_message_is_not_awaited(link, monkeypatch):
    push = link.push_messages
    monkeypatch.setattr(link, "push_messages", lambda sent: [*push(sent)[:2], ""])
    assert len(SuperLinkGrid(link).send_and_receive(messages(link))) == 2


def swallow(link, monkeypatch, node, times):
    """Let that many training messages to a node vanish; return all that is sent: to whom, of which type."""
    push, look, sent, vanished = link.push_messages, link.pull_messages, [], set()

    def take(messages):
        numbers = push(messages)
        for number, message in zip(numbers, messages, strict=True):
            sent.append((message.metadata.dst_node_id, message.metadata.message_type))
            if sent[-1] == (node, "train") and len(vanished) < times:
                vanished.add(number)
        return numbers

    monkeypatch.setattr(link, "push_messages", take)
    monkeypatch.setattr(link, "pull_messages", lambda numbers: look(set(numbers) - vanished))
    return sent


@pytest.mark.parametrize("times", [1, 2])
def test_lost_message_is_resent(link, monkeypatch, caplog, times):
    node = link.get_node_ids()[1]
    sent = swallow(link, monkeypatch, node, times)
    asked = messages(link)
    replies = SuperLinkGrid(link).send_and_receive(asked)
    ids = [message.metadata.message_id for message in asked]
    assert sorted(reply.metadata.reply_to_message_id for reply in replies) == sorted(ids)
    assert all(reply.has_content() for reply in replies)
    assert 60 * times < link.clock < 60 * times + 2
    assert sent[3:] == [(node, "query"), (node, "train")] * times
    assert caplog.text.count("was lost; sending it again") == times


def test_busy_node_is_only_queried(link, monkeypatch):
    node = link.get_node_ids()[1]
    sent = swallow(link, monkeypatch, node, times=0)
    link.held = {node}  # neither its reply nor its answers to questions come
    link.script = lambda look: link.held.clear() if link.clock > 200 else None
    assert len(SuperLinkGrid(link).send_and_receive(messages(link))) == 3
    assert sent[3:] == [(node, "query")] * 3


def test_expired_query_does_not_mean_idle(link, monkeypatch):
    node = link.get_node_ids()[1]
    sent = swallow(link, monkeypatch, node, times=1)
    pull, error = link.pull_messages, Error(ErrorCode.MESSAGE_UNAVAILABLE, "it has expired")

    def expired(numbers):
        for reply in pull(numbers):
            question = reply.metadata.message_type == "query"
            yield Message(error, reply_to=link.questions[reply.metadata.reply_to_message_id]) if question else reply

    monkeypatch.setattr(link, "pull_messages", expired)
    assert len(SuperLinkGrid(link).send_and_receive(messages(link), timeout=200)) == 2
    assert sent[3:] == [(node, "query")] * 3


@pytest.mark.parametrize(("breaks", "good"), [(2, 3), (9, 2)])
def test_incomplete_reply_is_retried(link, monkeypatch, breaks, good):
    node = link.get_node_ids()[1]
    sent = swallow(link, monkeypatch, node, times=0)
    pull, error, broken = link.pull_messages, Error(ErrorCode.MESSAGE_UNAVAILABLE, "objects are unavailable"), []

    def incomplete(numbers):
        for reply in pull(numbers):
            message = link.questions[reply.metadata.reply_to_message_id]
            if message.metadata.dst_node_id == node and len(broken) < breaks:
                broken.append(message)
                yield Message(error, reply_to=message)
            else:
                yield reply

    monkeypatch.setattr(link, "pull_messages", incomplete)
    asked = messages(link)
    replies = SuperLinkGrid(link).send_and_receive(asked)
    ids = [message.metadata.message_id for message in asked]
    assert sorted(reply.metadata.reply_to_message_id for reply in replies) == sorted(ids)
    assert sum(reply.has_content() for reply in replies) == good
    assert sent[3:] == [(node, "train")] * min(breaks, 3)
