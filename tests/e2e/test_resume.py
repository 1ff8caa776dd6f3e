"""A run in Flower's simulation that is killed, and one that changes its engine on the way."""

import random
import subprocess
import time

import pytest

from fedmr_flwr.runs.folder import RunFolder
from tests.support.tools import BIN, ROOT, family, in_the_background, left, wait_for_rounds

ROUNDS = 200  # long enough for a second command to find the run at work
SETTINGS = [f"rounds={ROUNDS}", "training.local-epochs=1", "checkpoint-every=3", "run-dir=run"]

pytestmark = pytest.mark.e2e


def test_killed_ray_run_ends_the_same(tmp_path, env):
    rng = random.Random(1)
    whole = RunFolder(tmp_path / "whole" / "run")
    whole.path.parent.mkdir()
    subprocess.run(
        [BIN / "fedmr", "run", ROOT / "conf/quickstart.yaml", *SETTINGS, "--engine", "in-process"],
        cwd=whole.path.parent, env=env, check=True, capture_output=True, timeout=300,
    )  # fmt: skip

    out = RunFolder(tmp_path / "run")
    # The machine goes down: every process at once, in the middle of a round.
    first = in_the_background(env, tmp_path, "run", ROOT / "conf/quickstart.yaml", *SETTINGS)
    wait_for_rounds(out, 5)
    time.sleep(rng.uniform(0, 0.3))
    for process in family(env):
        process.kill()
    first.communicate()
    before = len(out.read_rows())
    assert before < ROUNDS
    assert out.status == "running", "nobody was left to mark it as failed"

    # One of Ray's processes is killed: Flower would continue without it and fail its clients in every round.
    second = in_the_background(env, tmp_path, "resume", "run")
    wait_for_rounds(out, before + 4)
    busy = subprocess.run(
        [BIN / "fedmr", "resume", "run"],
        cwd=tmp_path,
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

    # The server's process alone is killed.
    before = len(out.read_rows())
    third = in_the_background(env, tmp_path, "resume", "run")
    wait_for_rounds(out, before + 2)
    (simulation,) = (p for p in family(env) if any(word.endswith("/flwr-simulation") for word in p.cmdline()))
    simulation.kill()
    _, error = third.communicate(timeout=300)
    assert (third.returncode, error.count("\n")) == (1, 1)
    assert error.startswith("fedmr: error: ")
    assert out.status == "failed"
    assert len(out.read_rows()) < ROUNDS

    last = in_the_background(env, tmp_path, "resume", "run", "--engine", "in-process")
    _, error = last.communicate(timeout=300)
    assert (last.returncode, error) == (0, "")
    assert [row["round"] for row in out.read_rows()] == list(range(1, ROUNDS + 1))
    assert out.read_manifest()["model-sha256"] == whole.read_manifest()["model-sha256"]
    assert out.read_manifest()["engine"] == "in-process"
    assert left(env) == []


def test_in_process_run_resumes_under_ray(tmp_path, env):
    settings = [*SETTINGS, "rounds=9", "strategy.name=scaffold"]  # whose clients keep something
    part = tmp_path / "my part #2: a"  # YAML and shells would take this apart
    for folder in (tmp_path / "whole", part):
        folder.mkdir()
    subprocess.run(
        [BIN / "fedmr", "run", ROOT / "conf/quickstart.yaml", *settings, "--engine", "in-process"],
        cwd=tmp_path / "whole", env=env, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    first = in_the_background(env, part, "run", ROOT / "conf/quickstart.yaml", *settings, "--engine", "in-process")
    out = RunFolder(part / "run")
    wait_for_rounds(out, 4)
    first.kill()
    first.communicate()
    assert len(out.read_rows()) < 9
    done = subprocess.run(
        [BIN / "fedmr", "resume", "run", "--engine", "ray"],
        cwd=part, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    whole = RunFolder(tmp_path / "whole" / "run").read_manifest()["model-sha256"]
    assert out.read_manifest()["model-sha256"] == whole
