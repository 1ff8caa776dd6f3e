"""The real thing: Flower's SuperLink, its simulation with Ray, and this project's commands as a user types them."""

import subprocess

import pytest

from fedmr_flwr.launch.python import run as run_here
from fedmr_flwr.runs.folder import RunFolder
from tests.support.tools import BIN, ROOT, flwr, left, manifest, wait_for_end

QUICKSTART = ROOT / "conf/quickstart.yaml"
TINY = ["rounds=4", "training.local-epochs=1"]

pytestmark = pytest.mark.e2e


# For the process of the server, which has Ray's threads.
SPY = """
import os, sys

def write(line):
    with open({path!r}, "a") as file:
        print(line, file=file)

def hear(event, arguments):
    if event == "os.putenv" and "ray" in sys.modules and arguments[0] not in os.environb:
        write(arguments[0])

if any(word.endswith("/flwr-simulation") for word in sys.orig_argv):
    write("watching")
    sys.addaudithook(hear)
"""


def spy(folder):
    """The file in which new variables of the environment are noted by processes with the folder in Python's path."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SPY.format(path=str(folder / "spied")))
    return folder / "spied"


def test_fedmr_run_equals_in_process(tmp_path, env):
    recipe = [
        "training.optimizer=adam", "training.lr=0.001", "training.schedule=cosine", "training.warmup-rounds=1",
        "training.local-epochs=2", "training.work=stragglers:0.5", "training.clip-norm=1",
        "partition.skew=source", "partition.test-fraction=0.2", "evaluation.clients=2",
        "evaluation.fine-tune=3", "evaluation.forgetting=true",
        "rounds=3", "clients=6", "clients-per-round=3",
    ]  # fmt: skip
    ray, here = RunFolder(tmp_path / "ray"), RunFolder(tmp_path / "here")
    run_here(QUICKSTART, *recipe, "engine=in-process", f"run-dir={here.path}")
    spied = spy(tmp_path / "spy")
    done = subprocess.run(
        [BIN / "fedmr", "run", QUICKSTART, *recipe, "run-dir=ray"],
        cwd=tmp_path, env=env | {"PYTHONPATH": str(spied.parent)}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    assert lines[0] == lines[-1] == f"run folder: {ray.path}"
    assert [line.split("  ")[0] for line in lines if line.startswith("round ")] == [f"round {n}/3" for n in (1, 2, 3)]
    assert ray.status == "completed"
    for name in ("model.safetensors", "curves.png", "clients.png", "flower.log", "metrics.jsonl"):
        assert (ray.path / name).stat().st_size > 0
    for fact in ("model-sha256", "client-tests-sha256", "tuned-accuracy"):
        assert ray.read_manifest()[fact] == here.read_manifest()[fact]
    assert ray.read_client_rows() == here.read_client_rows()
    around = [[row["around-training"] for row in out.read_rows()] for out in (ray, here)]
    assert around[0] == around[1]
    assert spied.read_text() == "watching\n", "a new variable may end a process that has threads"
    assert left(env) == []


def test_new_project_trains_the_same_both_ways(tmp_path, env, local):
    project = tmp_path / "first-try"
    short = "rounds=2 training.local-epochs=1"
    subprocess.run([BIN / "fedmr", "init", "first-try"], cwd=tmp_path, env=env, check=True, capture_output=True)
    done = subprocess.run(
        [BIN / "fedmr", "run", "conf.yaml", *short.split(), "run-dir=run", "--engine", "in-process"],
        cwd=project, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again = RunFolder(project / "again")
    overrides = f"set='{short} run-dir={again.path}'"
    # No --federation-config: Flower's default has two nodes, the project ten clients.
    run_id = flwr(local, "run", str(project), "local", "--run-config", overrides)["run-id"]
    status, details = wait_for_end(local, run_id, done=lambda: again.status in ("completed", "failed"))
    assert status == "finished:completed", details
    assert manifest(again.path)["model-sha256"] == manifest(project / "run")["model-sha256"]


def test_failed_flwr_run_is_logged_in_one_line(local):
    run_id = flwr(local, "run", str(ROOT), "local", "--run-config", "set='strategy.unit=blocks'")["run-id"]
    status, details = wait_for_end(local, run_id)
    assert status == "finished:failed"
    assert "unknown unit 'blocks'; choose one of" in details
    log = subprocess.run(
        [BIN / "flwr", "log", run_id, "local", "--show"],
        env=local,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert "unknown unit 'blocks'" in log
    assert "Traceback" not in log


def test_why_ray_did_not_start_is_told(tmp_path, env):
    folder = tmp_path / ("a" * 60) / ("b" * 60)  # where Ray's sockets would lie; their paths may have 107 characters
    folder.mkdir(parents=True)
    done = subprocess.run(
        [BIN / "fedmr", "run", QUICKSTART, *TINY, "run-dir=run"],
        cwd=tmp_path, env=env | {"TMPDIR": str(folder)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "AF_UNIX path length cannot exceed 107 bytes" in done.stderr
    assert "AF_UNIX path length cannot exceed 107 bytes" in (tmp_path / "run/flower.log").read_text()
    assert left(env) == []
