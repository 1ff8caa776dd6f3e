"""Flower apps as its users write them, in Flower's simulation: all that they take from here is the strategy."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.tools import BIN, flwr, wait_for_end

APPS = Path(__file__).parent / "apps"

pytestmark = pytest.mark.e2e


@pytest.fixture
def run(tmp_path, local):
    """Return a function that runs an app with six clients: what its server wrote, and what Flower logged."""

    def run(app, processes=1):
        out = tmp_path / "out.json"
        run_id = flwr(
            local, "run", str(APPS / app), "local",
            "--run-config", f"out='{out}'",
            "--federation-config",
            f"num-supernodes=6 init-args-num-cpus={processes} client-resources-num-cpus=1 "
            "client-resources-num-gpus=0.0",
        )["run-id"]  # fmt: skip
        status, details = wait_for_end(local, run_id, done=out.exists)
        log = subprocess.run(
            [BIN / "flwr", "log", run_id, "local", "--show"],
            env=local, capture_output=True, text=True, timeout=120, check=True,
        ).stdout  # fmt: skip
        assert status == "finished:completed", f"{details}\n{log}"
        return json.loads(out.read_text()), log

    return run


def warnings(log):
    """The client and the kind of every reply that did not count."""
    return re.findall(r"^client (\S+): ([a-z-]+): .+$", log, re.MULTILINE)


def test_classic_template_trains(run):
    found, log = run("classic")
    assert list(found["accuracies"]) == ["0", "1", "2", "3"]
    assert found["accuracies"]["0"] < 0.4
    assert found["accuracies"]["3"] > 0.8
    assert "'similarity'" in log
    assert "'train_loss'" in log
    assert warnings(log) == []


def test_lists_of_arrays_train(run):
    both, log = run("arrays")
    for strategy, extra in ("FedAvg", []), ("FedMR", ["similarity"]):
        found = both[strategy]
        assert len(found["accuracies"]) == 4, "round 0 included"
        assert found["accuracies"][-1] > 0.8
        assert found["train"] == {number: [*extra, "train_loss"] for number in "123"}
        assert found["evaluate"] == {number: ["eval_acc", "eval_loss"] for number in "123"}
        assert found["types"] == ["float64"] * 4
    assert log.count("configure_evaluate: Sampled 3 nodes (out of 6)") == 6
    assert "(2 units)" in log
    assert warnings(log) == []


def test_strategy_with_a_loop_of_its_own_trains(run):
    both, log = run("lightning")
    for strategy in "FedAvg", "FedMR":
        assert both[strategy]["best"] > 0.8
        assert len(both[strategy]["accuracies"]) == 3
    assert log.count("configure_train: Sampled 3 nodes (out of 6)") == 6
    assert warnings(log) == []


def test_current_template_trains_and_survives_failing_clients(run):
    all_three, log = run("plain", processes=2)  # one of the clients sleeps
    for strategy, extra in ("FedAvg", set()), ("FedMR", {"similarity"}):
        found = all_three[strategy]
        assert found["accuracy"] > 0.8
        assert [set(metrics) for metrics in found["metrics"].values()] == [{*extra, "train_loss"}] * 3
        # Each client has 239 images, so 7 batches of 32, three times in a round. FedMR neither averages nor loses
        # any; Flower's FedAvg averages the counters in each round, and cuts off what follows the point.
        assert 0 <= 3 * 3 * 7 - found["batches"] <= (3 if strategy == "FedAvg" else 0)
    found = all_three["trouble"]
    assert found["accuracy"] > 0.8
    assert list(found["metrics"]) == ["1", "2", "3"]
    failed = warnings(log)
    assert sorted(kind for _, kind in failed) == ["client-error", "malformed", "no-reply", "not-finite"]
    assert len({client for client, _ in failed}) == 4
    assert "the disk is gone" in log
    assert "'out.bias' is float32[11], expected float32[10]" in log
