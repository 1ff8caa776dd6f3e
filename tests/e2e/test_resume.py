"""A run that changes its engine, and dies or is stopped in every way under Flower's simulation."""

import random
import signal
import subprocess
import time

import pytest

from fedmr_flwr.launch.python import run as run_here
from fedmr_flwr.runs.folder import RunFolder
from tests.support.tools import BIN, ROOT, family, in_the_background, left, wait_for_rounds

QUICKSTART = ROOT / "conf/quickstart.yaml"
ROUNDS = 120  # long enough for a second command to find the run at work
# SCAFFOLD's clients keep something between rounds.
SETTINGS = [f"rounds={ROUNDS}", "training.local-epochs=1", "checkpoint-every=3", "strategy.name=scaffold"]

pytestmark = pytest.mark.e2e


def test_run_that_dies_in_every_way_ends_the_same(tmp_path, env):
    rng = random.Random(1)
    whole = RunFolder(tmp_path / "whole")
    run_here(QUICKSTART, *SETTINGS, "engine=in-process", f"run-dir={whole.path}")
    place = tmp_path / "my part #2: a"  # YAML and shells would take this apart
    place.mkdir()
    out = RunFolder(place / "run")

    first = in_the_background(env, place, "run", QUICKSTART, *SETTINGS, "run-dir=run", "--engine", "in-process")
    wait_for_rounds(out, 4, first)
    first.kill()
    first.communicate()
    before = len(out.read_rows())
    assert before < ROUNDS
    assert out.status == "running", "nobody was left to mark it as failed"

    # One of Ray's processes is killed: Flower would continue without it and fail its clients in every round.
    second = in_the_background(env, place, "resume", "run", "--engine", "ray")
    wait_for_rounds(out, before + 4, second)
    busy = subprocess.run(
        [BIN / "fedmr", "resume", "run"],
        cwd=place,
        env=env,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    next(process for process in family(env) if "ray::ClientAppActor" in " ".join(process.cmdline())).kill()
    output, error = second.communicate(timeout=300)
    assert busy.returncode == 1
    assert "run is in use by process " in busy.stderr
    assert "resuming after round " in output
    assert f"round {before - before % 3 + 1}/{ROUNDS}" in output
    assert f"round 1/{ROUNDS}" not in output, "only what is new is shown"
    assert (second.returncode, error.count("\n")) == (1, 1)
    assert "a Ray worker died while training " in error

    # The machine goes down: every process at once, in the middle of a round.
    before = len(out.read_rows())
    third = in_the_background(env, place, "resume", "run", "--engine", "ray")
    wait_for_rounds(out, before + 2, third)
    time.sleep(rng.uniform(0, 0.3))
    for process in family(env):
        process.kill()
    third.communicate()
    assert out.status == "running"

    # The server's process alone is killed.
    before = len(out.read_rows())
    fourth = in_the_background(env, place, "resume", "run", "--engine", "ray")
    wait_for_rounds(out, before + 2, fourth)
    (simulation,) = (p for p in family(env) if any(word.endswith("/flwr-simulation") for word in p.cmdline()))
    simulation.kill()
    _, error = fourth.communicate(timeout=300)
    assert (fourth.returncode, error.count("\n")) == (1, 1)
    assert error.startswith("fedmr: error: ")
    assert out.status == "failed"

    # Someone presses Ctrl-C.
    before = len(out.read_rows())
    fifth = in_the_background(env, place, "resume", "run", "--engine", "ray")
    wait_for_rounds(out, before + 2, fifth)
    fifth.send_signal(signal.SIGINT)
    _, error = fifth.communicate(timeout=90)
    assert (fifth.returncode, error) == (130, "fedmr: interrupted\n")
    assert out.status == "failed"
    assert left(env) == []
    assert len(out.read_rows()) < ROUNDS

    last = in_the_background(env, place, "resume", "run", "--engine", "in-process")
    _, error = last.communicate(timeout=300)
    assert (last.returncode, error) == (0, "")
    assert [row["round"] for row in out.read_rows()] == list(range(1, ROUNDS + 1))
    assert out.read_manifest()["model-sha256"] == whole.read_manifest()["model-sha256"]
    assert out.read_manifest()["engine"] == "in-process"
    assert left(env) == []
