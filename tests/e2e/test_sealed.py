"""A sealed deployment: the same model as without seals, and nothing of it where the server could read it."""

import signal
from contextlib import ExitStack, suppress

import numpy as np
import psutil
import pytest
import torch
from safetensors.numpy import load_file

from fedmr_flwr.config.loading import load
from fedmr_flwr.launch.python import run as run_here
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server.experiment import Experiment
from fedmr_flwr.training.evaluation import evaluate
from fedmr_flwr.wire.sealing import new_key
from tests.e2e.conftest import CLIENTS
from tests.support.tools import (
    family,
    fedmr,
    in_the_background,
    left,
    manifest,
    node,
    server,
    settle,
    until_all_train,
    wait_for_rounds,
)
from tests.support.windows import Windows, memory_of

pytestmark = pytest.mark.e2e

ROUNDS = 5
RUN = [f"rounds={ROUNDS}", "checkpoint-every=1", "guard=off"]


def plain_run(folder):
    """The same run in this process, which keeps every model."""
    own = [f"run-dir={folder / 'here'}", "keep-models=every 1", "keep-models-slots=true", "engine=in-process"]
    run_here(folder / "conf.yaml", *RUN, *own)
    return RunFolder(folder / "here")


def windows_of(out):
    """What the clients have trained, but for what is as it was at the start."""
    paths = sorted(out.models.glob("*-slot-*.safetensors"))
    assert len(paths) == ROUNDS * 3
    start = Experiment(load(out.config))
    initial = start.layout.unpack(start.codec.decode(start.arrays))
    return Windows([tensor for path in paths for tensor in load_file(path).values()], initial.values())


def on_the_server(env, folder):
    """The processes of the server: its SuperLink, and what runs the run."""
    found = {}
    for process in family(env):
        with suppress(psutil.Error):
            if process.cwd() == str(folder / "dep/server"):
                found[process] = " ".join(process.cmdline())
    assert any("superlink" in command for command in found.values()), found
    assert any("serverapp" in command for command in found.values()), found
    return found


def look(env, folder, windows, name, *settings):
    """Run on the deployment; return the programs of the server in whose memory windows are found meanwhile."""
    there = env | {"FLWR_HOME": str(folder / "dep/server/flower")}
    run = in_the_background(
        there, folder, "run", "conf.yaml", *RUN, *settings, f"run-dir={name}", "partition.name=nodes",
        "--superlink", "deployment",
    )  # fmt: skip
    wait_for_rounds(RunFolder(folder / name), 3, run)
    # Read at once and searched later: the run may end, and must not be stopped for long.
    memories = {command: memory_of(process) for process, command in on_the_server(env, folder).items()}
    found = {
        word
        for command, blocks in memories.items()
        for word in ("superlink", "serverapp")
        if word in command and any(map(windows.found_in, blocks))
    }
    output, error = run.communicate(timeout=240)
    assert run.returncode == 0, output + error
    return found


def test_server_never_has_a_layer(deployment, env):
    folder = deployment
    plain = plain_run(folder)
    windows = windows_of(plain)
    assert len(windows) > 10_000
    with ExitStack() as stack:
        stack.enter_context(server(env, folder))
        for client in range(CLIENTS):
            stack.enter_context(node(env, folder, f"dep/node-{client}"))
        # Before the other run, of which the SuperLink's memory keeps something.
        assert look(env, folder, windows, "sealed", "privacy.sealed=true") == set()
        for place in ("sealed", "dep/server"):
            assert windows.in_files(folder / place) == set()
        assert look(env, folder, windows, "plain") == {"superlink", "serverapp"}, "this test can find them"
        assert any("checkpoints" in path for path in windows.in_files(folder / "plain"))
    assert left(env) == []
    assert not windows.found_in((folder / "server.log").read_bytes())
    key = folder / "dep/node-0/sealing.key"
    done = fedmr(env, folder, "open", "sealed", "--key", key)
    assert done.returncode == 0, done.stderr
    for name in ("plain", "sealed"):
        assert manifest(folder / name)["model-sha256"] == manifest(plain.path)["model-sha256"]
    assert windows.in_files(folder / "sealed") == set(), "only their mean"


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
