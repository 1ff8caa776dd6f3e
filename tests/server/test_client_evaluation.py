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
        return Message(RecordDict({"metrics": MetricRecord({"accuracy": accuracy})}), reply_to=message)

    return RosterGrid(InProcessGrid(app, 7), 7)


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_failed_clients_score_none(grid, at_once):
    asked = []
    send = grid.send_and_receive
    grid.send_and_receive = lambda messages, timeout=None: asked.append(len(messages)) or send(messages)
    found = clients.accuracies(grid, MODEL, ConfigRecord({"x": 1}), at_once, 5.0)
    assert found == pytest.approx([0.0, None, None, 0.3, 0.4, 0.5, 0.6])
    assert max(asked) == min(at_once, 7)


def test_summary_by_hand():
    scores = [0.9, 0.5, None, *[1.0] * 10]  # twelve answered, so that the worst tenth are two
    found = clients.summary(scores)
    assert found["clients"] == 12
    assert found["mean"] == pytest.approx(11.4 / 12)
    assert found["worst-tenth"] == pytest.approx(0.7)
    squares = (0.9 - 0.95) ** 2 + (0.5 - 0.95) ** 2 + 10 * 0.05**2
    assert found["std"] == pytest.approx((squares / 12) ** 0.5)
    assert found["accuracies"] == scores
    assert clients.summary([None, None]) == {"clients": 0, "accuracies": [None, None]}
