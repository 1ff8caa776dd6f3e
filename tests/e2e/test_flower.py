"""The real thing: Flower's SuperLink, its simulation with Ray, and this project's commands as a user types them."""

import signal
import subprocess
import time

import pytest

from fedmr_flwr.runs.folder import RunFolder
from tests.support.tools import BIN, ROOT, flwr, left, manifest, wait_for_end

TINY = ["rounds=4", "training.local-epochs=1"]

pytestmark = pytest.mark.e2e


def test_fedmr_run_equals_in_process(tmp_path, env):
    recipe = [
        "training.optimizer=adam", "training.lr=0.001", "training.schedule=cosine", "training.warmup-rounds=1",
        "training.local-epochs=2", "training.work=stragglers:0.5", "training.clip-norm=1",
        "partition.skew=source", "partition.test-fraction=0.2", "evaluation.clients=2",
        "evaluation.fine-tune=3", "evaluation.forgetting=true",
        "rounds=3", "clients=6", "clients-per-round=3",
    ]  # fmt: skip
    for engine in ("in-process", "ray"):
        done = subprocess.run(
            [BIN / "fedmr", "run", ROOT / "conf/quickstart.yaml", *recipe, f"run-dir={engine}", "--engine", engine],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    ray, here = (RunFolder(tmp_path / engine) for engine in ("ray", "in-process"))
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
    assert left(env) == []


def test_flwr_run_with_its_default_nodes_equals_in_process(tmp_path, local):
    here = [BIN / "fedmr", "run", ROOT / "conf/quickstart.yaml", *TINY, "--engine", "in-process"]
    subprocess.run([*here, f"run-dir={tmp_path / 'here'}"], check=True, capture_output=True, timeout=300)
    out = RunFolder(tmp_path / "run")
    overrides = f"{' '.join(TINY)} run-dir={out.path}"
    # No --federation-config: Flower's default has two nodes, the quickstart 20 clients.
    run_id = flwr(local, "run", str(ROOT), "local", "--run-config", f"set='{overrides}'")["run-id"]
    status, _ = wait_for_end(local, run_id, done=lambda: out.status in ("completed", "failed"))
    assert status == "finished:completed"
    assert manifest(out.path)["model-sha256"] == manifest(tmp_path / "here")["model-sha256"]


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
        [BIN / "fedmr", "run", ROOT / "conf/quickstart.yaml", *TINY, "run-dir=run"],
        cwd=tmp_path, env=env | {"TMPDIR": str(folder)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "AF_UNIX path length cannot exceed 107 bytes" in done.stderr
    assert "AF_UNIX path length cannot exceed 107 bytes" in (tmp_path / "run/flower.log").read_text()
    assert left(env) == []


def test_ctrl_c_stops_flower(tmp_path, env):
    process = start_endless_run(tmp_path, env)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=90)
    assert (process.returncode, err) == (130, "fedmr: interrupted\n")
    assert manifest(tmp_path / "run")["status"] == "failed"
    assert left(env) == []


def start_endless_run(folder, env, seconds=180):
    """Start `fedmr run` and wait for its first round."""
    process = subprocess.Popen(
        [BIN / "fedmr", "run", ROOT / "conf/quickstart.yaml", "rounds=100000", "run-dir=run"],
        cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Where the tests run in the background, SIGINT is ignored, and ignoring is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + seconds
    while not (folder / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    return process
