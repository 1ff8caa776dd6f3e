import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedmr_flwr.server import client_evaluation as clients
from fedmr_flwr.wire.grids.in_process import InProcessGrid
from fedmr_flwr.wire.grids.roster import RosterGrid

MODEL = ArrayRecord({"floats": Array(np.zeros(3, np.float32))})


@pytest.fixture
def grid():
    """Seven clients; client c answers 0.1 c, the second raises, the third says nonsense."""
    app = ClientApp()

    @app.query()
    def query(message, context):
        number = MetricRecord({"client": context.node_config["partition-id"]})
        return Message(RecordDict({"metrics": number}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        client = context.node_config["partition-id"]
        assert message.content["config"]["x"] == 1
        if client == 1:
            raise ValueError("lost")
        accuracy = 7.0 if client == 2 else 0.1 * client
        return Message(
            RecordDict({"metrics": MetricRecord({"accuracy": accuracy, "num-examples": 5})}), reply_to=message
        )

    return RosterGrid(InProcessGrid(app, 7), 7)


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_failed_clients_score_none(grid, at_once):
    asked, sent_to = [], []
    send = grid.send_and_receive
    grid.send_and_receive = lambda messages, timeout=None: asked.append(len(messages)) or send(messages)
    found = clients.ask(
        grid,
        grid.get_node_ids(),
        lambda client: sent_to.append(client) or MODEL,
        ConfigRecord({"x": 1}),
        at_once,
        5.0,
    )
    accuracies = [None if scores is None else scores["accuracy"] for scores in found]
    assert accuracies == pytest.approx([0.0, None, None, 0.3, 0.4, 0.5, 0.6])
    assert max(asked) == min(at_once, 7)
    assert sent_to == list(range(7))


def scored(*pairs):
    return [{"accuracy": accuracy, "num-examples": examples, "own-tests": 1} for accuracy, examples in pairs]


def test_summary_by_hand():
    scores = [*scored((0.9, 10), (0.5, 10)), None, *scored(*[(1.0, 10)] * 10)]  # twelve: the worst tenth are two
    found = clients.summary(scores)
    assert (found["clients"], found["own-tests"]) == (12, 12)
    assert [found["mean"], found["weighted-mean"]] == pytest.approx([11.4 / 12] * 2)
    assert found["worst-tenth"] == pytest.approx(0.7)
    squares = (0.9 - 0.95) ** 2 + (0.5 - 0.95) ** 2 + 10 * 0.05**2
    assert [found["std"], found["weighted-std"]] == pytest.approx([(squares / 12) ** 0.5] * 2)
    assert clients.summary([None, None]) == {"clients": 0, "own-tests": 0}


def test_weighted_summary_by_hand():
    found = clients.summary(scored((0.2, 5), (0.6, 10), (1.0, 85)))
    assert found["weighted-mean"] == pytest.approx(0.05 * 0.2 + 0.1 * 0.6 + 0.85)
    assert found["weighted-worst-tenth"] == pytest.approx(0.4), "half of the worst tenth are the first client's"
    assert found["worst-tenth"] == 0.2
    mean = found["weighted-mean"]
    squares = 0.05 * (0.2 - mean) ** 2 + 0.1 * (0.6 - mean) ** 2 + 0.85 * (1 - mean) ** 2
    assert found["weighted-std"] == pytest.approx(squares**0.5)


@pytest.mark.parametrize(
    "metrics",
    [
        {"accuracy": 0.5},
        {"accuracy": 0.5, "num-examples": 0},
        {"accuracy": float("nan"), "num-examples": 5},
        {"accuracy": 0.5, "tuned-accuracy": 2.0, "num-examples": 5},
        {"num-examples": 5, "loss": 1.0},
        {"accuracy": 0.5, "num-examples": 1e300},
        {"accuracy": 0.5, "num-examples": 10**400},
        {"accuracy": [0.5], "num-examples": 5},
    ],
)
def test_nonsense_is_no_score(metrics):
    app = ClientApp()

    @app.query()
    def query(message, context):
        return Message(RecordDict({"metrics": MetricRecord({"client": 0})}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    grid = RosterGrid(InProcessGrid(app, 1), 1)
    assert clients.ask(grid, grid.get_node_ids(), lambda _: MODEL, ConfigRecord(), 1, 5.0) == [None]


def test_stated_examples_are_limited_or_verified():
    scores = [{"accuracy": 1.0, "num-examples": 10**14}, None, *[{"accuracy": 0.5, "num-examples": 10}] * 2]
    assert [each and each["num-examples"] for each in clients.limited(scores)] == [100, None, 10, 10]
    assert clients.verified(scores, [10, 10, 10, 9]) == [None, None, scores[2], None]
    assert clients.summary(clients.limited(scores))["weighted-mean"] == pytest.approx((100 + 5 + 5) / 120)
