"""Nodes and servers of a deployment that are killed in the middle of a round; the nodes have files of their own."""

import signal
import time
from contextlib import ExitStack, suppress

import psutil
import pytest
from PIL import Image
from sklearn.datasets import load_wine

from fedmr_flwr.config.data import Data
from fedmr_flwr.data import datasets
from fedmr_flwr.launch.python import run as run_here
from fedmr_flwr.runs import checkpoint
from fedmr_flwr.runs.folder import RunFolder
from tests.support.tools import (
    deploy_here,
    family,
    flwr,
    in_the_background,
    left,
    manifest,
    node,
    server,
    until_all_train,
    until_one_trains,
    wait_for_rounds,
)  # fmt: skip

pytestmark = pytest.mark.e2e

RUN = ["run", "conf.yaml", "run-dir=run", "partition.name=nodes", "--superlink", "deployment"]
CONF = {
    "device": "cpu", "checkpoint-every": 1, "partition": {"name": "iid"},
    "training": {"local-epochs": 1, "batch-size": 20, "lr": 0.05},
}  # fmt: skip


def images(folder, examples, part):
    """Write digits as PNG files in a folder for each class; return the setting that names them."""
    for at in part:
        image, label = examples.inputs[at, 0].numpy(), int(examples.labels[at])
        path = folder / str(label) / f"{at:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return f"folder:{folder}"


def slots_after(out, number):
    """The model of every slot after a round, from its checkpoint."""
    note = out.checkpoints / f"round-{number:06d}.json"
    deadline = time.monotonic() + 60
    while not note.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    state = checkpoint.load(note).state
    return [state[f"{slot}.floats"] for slot in range(4)]


def kill(part, what):
    """Kill the process of a part of the deployment whose command contains some words, the nearest one."""
    for process in part.process.children(recursive=True):
        if what in " ".join(process.cmdline()):
            process.kill()
            return
    raise AssertionError(what)


def test_deaths_in_a_node_cost_its_own_model_one_round(tmp_path, env):
    digits = datasets.load(Data(), None)
    for name, examples in (("train", digits.train), ("test", digits.test)):
        images(tmp_path / "digits" / name, examples, range(0, len(examples), 4))
    # Models that are never mixed, so that one that is not trained is the same after the round.
    own = {
        "rounds": 99, "clients": 4, "clients-per-round": 4, "data": {"name": f"folder:{tmp_path / 'digits'}"},
        "strategy": {"name": "indep"},
    }  # fmt: skip
    there = deploy_here(env, tmp_path, CONF | own, 4, images)
    with ExitStack() as stack:

        def start(client):
            return stack.enter_context(node(env, tmp_path, f"dep/node-{client}"))

        stack.enter_context(server(env, tmp_path))
        nodes = [start(client) for client in range(4)]
        for one in nodes:
            one.until("SuperNode ID", 120)
        run = in_the_background(there, tmp_path, *RUN, "deployment.join-timeout=10")
        out = RunFolder(tmp_path / "run")
        wait_for_rounds(out, 1, run)

        # What the clients are forks of, what starts them, and all of a node: it loses its power, and gets it back.
        until_all_train(*nodes)
        number = len(out.read_rows()) + 1
        kill(nodes[1], "multiprocessing.forkserver")
        kill(nodes[2], "superexec.main")
        nodes[3].kill()
        nodes[3] = start(3)
        for one in nodes[1:3]:  # these leave, and come back by themselves
            one.until("(?s)the node connects again.*SuperNode ID", 60)
        assert len(out.read_rows()) < number, "long before the SuperLink misses the third"
        row = wait_for_rounds(out, number, run)
        before, after = slots_after(out, number - 1), slots_after(out, number)
        assert sorted((failed["client"], failed["kind"]) for failed in row["failed"]) == [
            (1, "node-lost"), (2, "node-lost"), (3, "node-lost"),
        ]  # fmt: skip
        slot_of = dict(zip(row["clients"], row["slots"], strict=True))
        unchanged = [(after[slot] == before[slot]).all() for slot in range(4)]
        assert unchanged == [slot != slot_of[0] for slot in range(4)]
        while row["replies"] < 4:
            number += 1
            row = wait_for_rounds(out, number, run)
            assert {failed["kind"] for failed in row.get("failed", ())} <= {"offline"}
        assert all((now != then).any() for now, then in zip(slots_after(out, number), after, strict=True))

        # They are stopped: nobody is left.
        for one in nodes:
            one.process.terminate()
        output, error = run.communicate(timeout=180)
        assert (run.returncode, error.count("\n")) == (1, 1), error
        assert "waiting: 0 of the 1 clients needed are connected" in output
        assert "after 10 s 0 of the 1 clients needed are connected; start the others" in error
        found, problems = checkpoint.latest(out.checkpoints)
        good = max(row["round"] for row in out.read_rows() if not row.get("bad"))
        assert (found.round >= good, problems, out.status) == (True, [], "failed")
    assert left(env) == []


ROUNDS = 12


def test_killed_server_resumes_the_same(tmp_path, env):
    table = load_wine(as_frame=True).frame
    (tmp_path / "wine").mkdir()
    table[::5].to_csv(tmp_path / "wine/test.csv", index=False)
    train = table.drop(table.index[::5])
    train.to_csv(tmp_path / "wine/train.csv", index=False)

    def rows(path, _, part):
        train.iloc[part].to_csv(f"{path}.csv", index=False)
        return f"csv:{path}.csv"

    own = {
        "rounds": ROUNDS, "clients": 2, "clients-per-round": 2, "model": {"name": "mlp"},
        "data": {"name": f"csv:{tmp_path / 'wine'}", "label": "target"},
        "wire": "float16",  # half precision must not matter for any of this
    }  # fmt: skip
    there = deploy_here(env, tmp_path, CONF | own, 2, rows)
    out = RunFolder(tmp_path / "run")
    with ExitStack() as stack:
        machine = stack.enter_context(server(env, tmp_path))
        nodes = [stack.enter_context(node(env, tmp_path, f"dep/node-{client}")) for client in range(2)]

        # The ServerApp is killed, the SuperLink stays.
        first = in_the_background(there, tmp_path, *RUN)
        run_here(tmp_path / "conf.yaml", "engine=in-process", f"run-dir={tmp_path / 'reference'}")
        wait_for_rounds(out, 1, first)
        until_one_trains(*nodes)
        for process in family(env):
            with suppress(psutil.NoSuchProcess):
                if "flwr-serverapp" in " ".join(process.cmdline()):
                    process.kill()
        _, error = first.communicate(timeout=180)
        assert (first.returncode, error.count("\n")) == (1, 1), error

        # What starts the ServerApps is killed, too. Someone presses Ctrl-C.
        kill(machine, "superexec.main")
        machine.until("SuperExec ended with status -9; starting it again")
        stopped = in_the_background(there, tmp_path, "resume", "run")
        wait_for_rounds(out, len(out.read_rows()) + 1, stopped)
        stopped.send_signal(signal.SIGINT)
        _, error = stopped.communicate(timeout=60)
        assert (stopped.returncode, error) == (130, "fedmr: interrupted\n")
        assert "running" not in [run["status"] for run in flwr(there, "list", "deployment")["runs"]]

        # The whole server loses its power.
        second = in_the_background(there, tmp_path, "resume", "run")
        wait_for_rounds(out, len(out.read_rows()) + 1, second)
        until_one_trains(*nodes)
        machine.kill()
        output, error = second.communicate(timeout=180)
        assert (second.returncode, error.count("\n")) == (1, 1), error
        assert "resuming after round " in output
        assert len(out.read_rows()) < ROUNDS

        stack.enter_context(server(env, tmp_path))
        last = in_the_background(there, tmp_path, "resume", "run")
        _, error = last.communicate(timeout=240)
        assert (last.returncode, error) == (0, "")
    rows = out.read_rows()
    assert [row["round"] for row in rows] == [*range(1, ROUNDS + 1)]
    assert [row["failed"] for row in rows if row["failures"]] == []
    assert manifest(out.path)["model-sha256"] == manifest(tmp_path / "reference")["model-sha256"]
    assert left(env) == []
