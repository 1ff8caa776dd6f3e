"""Nodes and servers of a deployment that are killed in the middle of a round."""

import signal
import time
from contextlib import ExitStack, suppress

import psutil
import pytest

from fedmr_flwr.runs import checkpoint
from fedmr_flwr.runs.folder import RunFolder
from tests.support.tools import (
    family,
    fedmr,
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

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

RUN = ["run", "conf.yaml", "run-dir=run", "partition.name=nodes", "checkpoint-every=1", "--superlink", "deployment"]


def slots_after(out, number):
    """The model of every slot after a round, from its checkpoint."""
    note = out.checkpoints / f"round-{number:06d}.json"
    deadline = time.monotonic() + 60
    while not note.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    state = checkpoint.load(note).state
    return [state[f"{slot}.floats"] for slot in range(4)]


def test_dead_nodes_lose_one_round(deployment, env, there):
    with ExitStack() as stack:

        def start(client):
            return stack.enter_context(node(env, deployment, f"dep/node-{client}"))

        stack.enter_context(server(env, deployment))
        nodes = [start(client) for client in range(4)]
        # Models that are never mixed, so that one that is not trained is the same after the round.
        settings = ["rounds=99", "clients-per-round=4", "strategy.name=indep", "deployment.join-timeout=30"]
        run = in_the_background(there, deployment, *RUN, *settings)
        out = RunFolder(deployment / "run")
        wait_for_rounds(out, 1)

        # One loses its power and is switched on again.
        until_one_trains(nodes[1])
        number = len(out.read_rows()) + 1
        before = slots_after(out, number - 1)
        nodes[1].kill()
        nodes[1] = start(1)
        row = wait_for_rounds(out, number)
        after = slots_after(out, number)
        assert [(failed["client"], failed["kind"]) for failed in row["failed"]] == [(1, "node-lost")]
        its = row["slots"][row["clients"].index(1)]
        assert [(after[slot] == before[slot]).all() for slot in range(4)] == [slot == its for slot in range(4)]
        nodes[1].until("SuperNode ID", 120)
        while row["replies"] < 4:
            number += 1
            row = wait_for_rounds(out, number)
            assert {failed["kind"] for failed in row.get("failed", ())} <= {"offline"}
        assert (slots_after(out, number)[its] != after[its]).any()

        # The process that starts one's clients is killed: it leaves, and comes back by itself.
        until_one_trains(nodes[3])
        number = len(out.read_rows()) + 1
        (executor,) = (
            process for process in nodes[3].process.children() if "superexec.main" in " ".join(process.cmdline())
        )
        executor.kill()
        row = wait_for_rounds(out, number, seconds=30)
        assert [(failed["client"], failed["kind"]) for failed in row["failed"]] == [(3, "node-lost")]
        nodes[3].until("the node connects again", 20)
        while row["replies"] < 4:
            number += 1
            row = wait_for_rounds(out, number)
            assert {failed["kind"] for failed in row.get("failed", ())} <= {"offline"}

        # Two at once, which stay away.
        until_all_train(nodes[0], nodes[2])
        number = len(out.read_rows()) + 1
        nodes[0].kill()
        nodes[2].kill()
        row = wait_for_rounds(out, number)
        assert sorted((failed["client"], failed["kind"]) for failed in row["failed"]) == [
            (0, "node-lost"), (2, "node-lost"),
        ]  # fmt: skip
        assert wait_for_rounds(out, number + 1)["failures-by-kind"] == {"offline": 2}

        # And the others: nobody is left.
        until_all_train(nodes[1], nodes[3])
        nodes[1].kill()
        nodes[3].kill()
        output, error = run.communicate(timeout=180)
        assert (run.returncode, error.count("\n")) == (1, 1), error
        assert "waiting: 0 of the 1 clients needed are connected" in output
        assert "after 30 s 0 of the 1 clients needed are connected; start the others" in error
        found, problems = checkpoint.latest(out.checkpoints)
        good = max(row["round"] for row in out.read_rows() if not row.get("bad"))
        assert (found.round >= good, problems, out.status) == (True, [], "failed")
    assert left(env) == []


ROUNDS = 8
# The wire's half precision must not matter for any of this.
SETTINGS = [f"rounds={ROUNDS}", "wire=float16"]


def test_killed_server_resumes_the_same(deployment, env, there):
    done = fedmr(env, deployment, "run", "conf.yaml", *SETTINGS, "run-dir=reference", "--engine", "in-process")
    assert done.returncode == 0, done.stderr
    out = RunFolder(deployment / "run")
    with ExitStack() as stack:
        machine = stack.enter_context(server(env, deployment))
        nodes = [stack.enter_context(node(env, deployment, f"dep/node-{client}")) for client in range(4)]

        # The ServerApp is killed, the SuperLink stays.
        first = in_the_background(there, deployment, *RUN, *SETTINGS)
        wait_for_rounds(out, 1)
        until_one_trains(*nodes)
        for process in family(env):
            with suppress(psutil.NoSuchProcess):
                if "flwr-serverapp" in " ".join(process.cmdline()):
                    process.kill()
        _, error = first.communicate(timeout=180)
        assert (first.returncode, error.count("\n")) == (1, 1), error

        # Someone presses Ctrl-C.
        stopped = in_the_background(there, deployment, "resume", "run")
        wait_for_rounds(out, len(out.read_rows()) + 1)
        stopped.send_signal(signal.SIGINT)
        _, error = stopped.communicate(timeout=60)
        assert (stopped.returncode, error) == (130, "fedmr: interrupted\n")
        assert "running" not in [run["status"] for run in flwr(there, "list", "deployment")["runs"]]

        # The whole server loses its power.
        second = in_the_background(there, deployment, "resume", "run")
        wait_for_rounds(out, len(out.read_rows()) + 1)
        until_one_trains(*nodes)
        machine.kill()
        output, error = second.communicate(timeout=180)
        assert (second.returncode, error.count("\n")) == (1, 1), error
        assert "resuming after round " in output
        assert len(out.read_rows()) < ROUNDS

        stack.enter_context(server(env, deployment))
        last = in_the_background(there, deployment, "resume", "run")
        _, error = last.communicate(timeout=240)
        assert (last.returncode, error) == (0, "")
    rows = out.read_rows()
    assert [row["round"] for row in rows] == [*range(1, ROUNDS + 1)]
    assert [row["failed"] for row in rows if row["failures"]] == []
    assert manifest(out.path)["model-sha256"] == manifest(deployment / "reference")["model-sha256"]
    assert left(env) == []
