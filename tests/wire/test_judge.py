"""Which replies of a round count, and why the others do not."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedmr_flwr import FedAvg, FedMR
from fedmr_flwr.algorithms.flower import flower_strategy
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.wire.checks import judge
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.roster import RosterGrid
from tests.support.rounds import packed

MODEL = ArrayRecord({"floats": Array(np.zeros(3, np.float32))})


@pytest.fixture
def sent():
    """Messages to clients 0 to 5 on nodes 100 to 105."""
    messages = {client: Message(RecordDict({"arrays": MODEL}), 100 + client, "train") for client in range(6)}
    for client, message in messages.items():
        message.metadata.__dict__["_message_id"] = f"message {client}"
    return messages


def good(message, values=(0, 0, 0), **metrics):
    arrays = ArrayRecord({"floats": Array(np.array(values, np.float32))})
    content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": 1, **metrics})}
    return Message(RecordDict(content), reply_to=message)


def test_every_kind_of_failure_is_named(sent):
    replies = [
        good(sent[0]),
        Message(Error(2, "RuntimeError: no\nmemory"), reply_to=sent[1]),
        good(sent[2], (0, np.nan, 0)),
        good(sent[4]), good(sent[4]),
        good(sent[5]),
        Message(RecordDict(), reply_to=Message(RecordDict(), 1, "train")),
    ]  # fmt: skip
    judged = judge(sent, replies)
    assert [*judged.good] == [0, 5]
    assert [(failure.client, failure.kind) for failure in judged.failures] == [
        (1, "client-error"), (2, "not-finite"), (3, "no-reply"), (4, "duplicate"), (-1, "unsolicited")
    ]  # fmt: skip
    assert judged.failures[0].reason == "RuntimeError: no memory"


def test_late_reply_is_unasked(sent):
    reply = good(sent[3])
    reply.metadata.__dict__["_reply_to_message_id"] = "of an earlier round"
    assert [*judge(sent, [reply]).good] == []
    assert [*judge(sent, [reply, good(sent[3])]).good] == [3]


def test_reply_to_a_wrappers_message_is_known_by_node(sent):
    reply = good(sent[3])
    sent[3].metadata.__dict__["_message_id"] = ""
    reply.metadata.__dict__["_reply_to_message_id"] = "of a wrapper's own"
    assert [*judge(sent, [reply]).good] == [3]


def test_foreign_error_is_known_by_message(sent):
    error = Message(Error(3, "expired"), reply_to=sent[2])
    error.metadata.__dict__["_src_node_id"] = 1
    judged = judge(sent, [error])
    assert ("expired", "expired") in [(f.kind, f.reason) for f in judged.failures if f.client == 2]


def test_unknown_error_is_unasked(sent):
    error = Message(Error(3, "expired"), reply_to=Message(RecordDict(), 1, "train"))
    kinds = {failure.client: failure.kind for failure in judge(sent, [error]).failures}
    assert kinds == {**dict.fromkeys(range(6), "no-reply"), -1: "unsolicited"}


def test_lost_states_are_listed(sent):
    judged = judge(sent, [good(sent[0]), good(sent[1], **{"lost-state": 1})])
    assert judged.lost_state == (1,)


LAYOUT = Layout.of({"w": np.zeros(3, np.float32), "bn.running_var": np.zeros(1, np.float32)})
CODEC = Codec(LAYOUT)


@pytest.fixture
def judged(grid_of, answer):
    """Return a function that judges clients whose updates have the given lengths, each in its own direction."""

    def run(updates, make=FedMR, statistic=0.0, **options):
        def reply(message, client):
            model = CODEC.decode(message.content["arrays"])
            step = np.zeros(4, np.float32)
            step[client % 3], step[3] = updates[client], statistic * client
            return answer(CODEC.encode(packed(model.floats + step)))

        grid = RosterGrid(grid_of(reply, len(updates)), len(updates))
        strategy = make(clients_per_round=len(updates), layout=LAYOUT, **options)
        messages = strategy.configure_train(1, CODEC.encode(packed([0, 0, 0, 1])), ConfigRecord(), grid)
        return strategy.judge(grid.send_and_receive(messages))

    return run


@pytest.mark.parametrize(
    ("updates", "guard", "refused"),
    [
        ([1, 2, 3, 10, 11], 3.5, {4}),  # the median is 3; 10 is 3.33 times as long, 11 is 3.67 times
        ([1, 2, 3, 10, 11], None, set()),
        ([1, 2, 3, 10, 11], 2.0, {3, 4}),
        ([0, 0, 0, 5, 5], 2.0, set()),  # with a median of zero there is nothing to compare with
        ([1, 1, 1, 3e38, -3e38], 2.0, {3, 4}),  # squares overflow float32
        ([7], 2.0, set()),
    ],
)
@pytest.mark.parametrize("make", [FedMR, FedAvg, flower_strategy("flwr:FedMedian")], ids=lambda make: make.__name__)
def test_guard_refuses_far_longer_updates(judged, make, updates, guard, refused):
    found = judged(updates, make, guard=guard)
    assert {failure.client for failure in found.failures if failure.kind == "outlier"} == refused
    assert found.good.keys() == set(range(len(updates))) - refused


def test_guard_measures_weights_by_themselves(judged):
    assert judged([1, 1, 1, 1, 9], statistic=1e6, guard=3).failures[0].client == 4


@pytest.mark.parametrize("make", [FedMR, flower_strategy("flwr:FedMedian")], ids=lambda make: make.__name__)
def test_guard_measures_buffers_by_themselves(judged, make):
    found = judged([1e6] * 7, make, statistic=1.0, guard=1.5)  # the statistics move by 0 to 6
    assert [failure.client for failure in found.failures] == [5, 6]
    assert "the update of its buffers is 1.7 times as long as the median" in found.failures[0].reason


@pytest.mark.parametrize("make", [FedMR, flower_strategy("flwr:FedMedian")], ids=lambda make: make.__name__)
def test_negative_variance_is_refused(judged, make):
    found = judged([1, 1, 1], make, statistic=-0.75, guard=1e9)  # variances of 1, 0.25 and -0.5
    assert [(failure.client, failure.kind, failure.reason) for failure in found.failures] == [
        (2, "outlier", "a running variance is negative")
    ]


def test_guard_states_by_how_much(judged):
    (failure,) = judged([1, 2, 3, 10, 11], guard=3.5).failures
    assert failure.reason == "its update is 3.7 times as long as the median; the guard accepts 3.5"


@pytest.mark.parametrize("make", [FedAvg, flower_strategy("flwr:FedAvg")], ids=lambda make: make.__name__)
def test_client_may_not_change_its_number_of_examples(grid_of, answer, make):
    start = CODEC.encode(packed([0, 0, 0, 1]))

    def reply(message, client):
        return answer(start, examples=1e14 if client == 2 else client + 1)

    grid = RosterGrid(grid_of(reply, 4, stated=True), 4)
    strategy = make(clients_per_round=4, layout=LAYOUT)
    found = strategy.judge(grid.send_and_receive(strategy.configure_train(1, start, ConfigRecord(), grid)))
    (failure,) = found.failures
    order = sorted(found.good)
    assert len(order) == 3 and failure.client not in order
    assert failure.kind == "malformed"
    assert failure.reason == "the client states 100000000000000.0 examples, and stated 3 before the first round"


def test_records_that_nobody_asked_for_are_refused(sent):
    replies = {client: good(message) for client, message in sent.items()}
    replies[1].content["more"] = MODEL
    replies[2].content["../../x"] = ConfigRecord({"y": "z"})
    replies[3].content["arrays"]["more"] = MODEL["floats"]
    judged = judge(sent, replies.values())
    assert [*judged.good] == [0, 4, 5]
    assert [(failure.client, failure.kind) for failure in judged.failures] == [(at, "malformed") for at in (1, 2, 3)]
    assert judged.failures[0].reason == "the reply has records that nobody asked for: more"


def test_vector_beside_the_one_asked_for_is_refused(sent):
    asked = {0: sent[0]}
    sent[0].content["returns"] = ConfigRecord({"control": 3})
    reply = good(sent[0])
    reply.content["control"] = ArrayRecord({"floats": Array(np.zeros(3, np.float32))})
    assert judge(asked, [reply]).good
    reply.content["control"]["more"] = Array(np.zeros(3, np.float32))
    (failure,) = judge(asked, [reply]).failures
    assert failure.reason == "the record 'control' has more than the vector that was asked for"


def test_implausible_loss_is_an_outlier(sent):
    losses = [0.5, 0.6, 1e14, 0.4, 0.5, 0.5]
    replies = [good(message, **{"train-loss": losses[client]}) for client, message in sent.items()]
    (failure,) = judge(sent, replies).failures
    assert (failure.client, failure.kind) == (2, "outlier")
    assert failure.reason == "its 'train-loss' is 1e+14; the round's median is 0.5"


@pytest.mark.parametrize("make", [FedAvg, flower_strategy("flwr:FedAvg")], ids=lambda make: make.__name__)
def test_examples_weigh_ten_times_the_median_at_most(grid_of, answer, make):
    start = CODEC.encode(packed([0, 0, 0, 1]))
    counts = [10, 10, 10**14]

    def reply(message, client):
        return answer(CODEC.encode(packed([0, 0, 12.0 * (client == 2), 1])), examples=counts[client])

    inner = grid_of(reply, 3, stated=True)
    grid = RosterGrid(inner, 3, min_clients=3)
    grid._attendance._counts = dict(enumerate(counts))
    strategy = make(clients_per_round=3, layout=LAYOUT)
    replies = grid.send_and_receive(strategy.configure_train(1, start, ConfigRecord(), grid))
    arrays, _ = strategy.aggregate(1, strategy.judge(replies))
    assert CODEC.decode(arrays).floats == pytest.approx([0, 0, 10, 1])  # 12 · 100 / 120
    assert grid.limited_examples == {2: (10**14, 100)}
