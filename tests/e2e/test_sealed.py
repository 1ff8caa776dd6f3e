"""A sealed deployment in which nodes come late, are killed, and get another key."""

import signal
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fedmr_flwr.config.loading import load
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server.experiment import Experiment
from fedmr_flwr.training.evaluation import evaluate
from fedmr_flwr.wire.sealing import new_key
from tests.e2e.conftest import CLIENTS
from tests.support.tools import (
    fedmr,
    in_the_background,
    left,
    node,
    server,
    settle,
    until_all_train,
    wait_for_rounds,
)

pytestmark = pytest.mark.e2e

ROUNDS = 5
RUN = [f"rounds={ROUNDS}", "checkpoint-every=1", "guard=off"]


def with_tests(folder, file):
    """Give a node the test examples of the data set, to score on."""
    test = Experiment(load(folder / "conf.yaml")).test
    inputs, labels = test.inputs.numpy(), test.labels.numpy()
    np.savez(folder / file, x_train=inputs[:2], y_train=labels[:2], x_test=inputs, y_test=labels)


def accuracy_of(folder, out):
    """The accuracy of a run's model on the test set."""
    here = Experiment(load(folder / "conf.yaml"))
    here.model.load_state_dict({name: torch.from_numpy(array) for name, array in load_file(out.model).items()})
    return evaluate(here.model, here.dataset, here.test, torch.device("cpu")).accuracy


def test_sealed_run_survives_late_and_killed_nodes_and_a_new_key(deployment, env, there):
    folder = deployment
    own = [*RUN, "clients=3", "clients-per-round=2", "privacy.sealed=true", "partition.name=nodes"]
    own += ["deployment.min-clients=2", "--superlink", "deployment"]
    with_tests(folder, "own3.npz")
    settle(folder / "dep/node-3", role="evaluator")
    app = fedmr(env, folder, "deploy", "app-sha256").stdout.strip()
    for client in range(CLIENTS):
        settle(folder / f"dep/node-{client}", **{"app-sha256": "0" * 64 if client == 2 else app})
    first, second = RunFolder(folder / "first"), RunFolder(folder / "second")
    with ExitStack() as stack:
        stack.enter_context(server(env, folder))
        _, doomed, _ = (stack.enter_context(node(env, folder, f"dep/node-{client}")) for client in (0, 1, 3))
        with node(env, folder, "dep/node-2") as wary:
            run = in_the_background(there, folder, "run", "conf.yaml", *own, "run-dir=first")
            wait_for_rounds(first, 2)
            wary.until("FAB verification failed")
            run.send_signal(signal.SIGINT)
            run.communicate(timeout=120)
        assert not any(2 in row["clients"] and row["replies"] == 2 for row in first.read_rows())
        settle(folder / "dep/node-2", **{"app-sha256": app})
        stack.enter_context(node(env, folder, "dep/node-2")).until("SuperNode ID")
        done = fedmr(there, folder, "resume", "first", "--superlink", "deployment")
        assert done.returncode == 0, done.stdout + done.stderr
        text = new_key()
        for client in range(CLIENTS):
            path = folder / f"dep/node-{client}/sealing.key"
            (folder / "old.key").write_text(path.read_text())
            path.write_text(text)
        run = in_the_background(there, folder, "run", "conf.yaml", *own, "run-dir=second")
        wait_for_rounds(second, 1)
        until_all_train(doomed)
        doomed.kill()
        output, error = run.communicate(timeout=240)
        assert run.returncode == 0, output + error
        failed = {(each["client"], each["kind"]) for row in second.read_rows() for each in row.get("failed", ())}
        assert (1, "node-lost") in failed, "its slot keeps its units"
    done = fedmr(env, folder, "open", "second", "--key", "old.key")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "sealed with another key" in done.stderr
    for out, key in (first, "old.key"), (second, "dep/node-0/sealing.key"):
        done = fedmr(env, folder, "open", out.path, "--key", key)
        assert done.returncode == 0, done.stderr
        assert accuracy_of(folder, out) == out.read_rows()[-1]["test-accuracy"], "as the evaluator says"
    assert len(first.read_rows()) == ROUNDS
    assert left(env) == []
