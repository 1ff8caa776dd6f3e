"""Early stop: Flower's rounds and log, up to the round that a condition names."""

import re

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedmr_flwr.wire.flower.early_stop import run_until
from fedmr_flwr.wire.grids.in_process import InProcessGrid

START = ArrayRecord({"w": Array(np.zeros(2, np.float32))})


def grid():
    """Two clients that add the configured step to every value."""
    app = ClientApp()

    @app.train()
    def _train(message, context):
        config = message.content["config"]
        values = message.content["arrays"]["w"].numpy() + np.float32(config["step"])
        metrics = MetricRecord({"loss": 1 / config["server-round"], "num-examples": 1})
        return Message(
            RecordDict({"arrays": ArrayRecord({"w": Array(values)}), "metrics": metrics}), reply_to=message
        )

    @app.evaluate()
    def _evaluate(message, context):
        metrics = MetricRecord({"seen": message.content["config"]["tag"], "num-examples": 1})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return InProcessGrid(app, 2)


class Unlucky(FedAvg):
    """Its second round gives no model and no metrics."""

    def aggregate_train(self, server_round, replies):
        return (None, None) if server_round == 2 else super().aggregate_train(server_round, replies)


def scored(number, arrays):
    return MetricRecord({"sum": float(arrays["w"].numpy().sum())}) if number != 1 else None


@pytest.mark.parametrize("evaluate_fn", [scored, None])
def test_without_a_stop_rounds_and_log_are_flowers(evaluate_fn, caplog):
    caplog.set_level("INFO")

    def configs():  # new ones, because Flower's strategies write the round into them
        return ConfigRecord({"step": 1.5}), ConfigRecord({"tag": 7})

    theirs = Unlucky().start(grid(), START, 4, 60, *configs(), evaluate_fn)
    expected = [re.sub(r"[\d.]+s$", "", line) for line in caplog.messages]
    caplog.clear()
    asked = []
    ours = run_until(
        lambda number, result: asked.append(number), Unlucky(), grid(), START, 4, 60, *configs(), evaluate_fn
    )
    assert ours == theirs
    assert [re.sub(r"[\d.]+s$", "", line) for line in caplog.messages] == expected
    assert asked == [1, 2, 3, 4]


def test_stops_after_the_round_in_question(caplog):
    caplog.set_level("INFO")

    def enough(number, result):
        return result.arrays["w"].numpy().sum() >= 6

    config = ConfigRecord({"step": 1.5, "tag": 7})
    result = run_until(enough, FedAvg(), grid(), START, 9, 60, config, config, scored)
    assert result.arrays["w"].numpy().tolist() == [3, 3]
    assert list(result.train_metrics_clientapp) == list(result.evaluate_metrics_clientapp) == [1, 2]
    assert list(result.evaluate_metrics_serverapp) == [0, 2]
    assert "Stopping early after round 2" in caplog.messages
    assert "[ROUND 3/9]" not in caplog.messages
    assert "Final results:" in caplog.messages


def test_result_of_no_good_round_is_the_first_model():
    class Failing(FedAvg):
        def aggregate_train(self, server_round, replies):
            return None, None

    config = ConfigRecord({"step": 1.5, "tag": 7})
    result = run_until(lambda number, result: True, Failing(), grid(), START, 3, 60, config, config, None)
    assert result.arrays == START
