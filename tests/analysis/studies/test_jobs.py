"""Running a comparison: missing runs, one after another or side by side."""

import csv
import io
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fedmr_flwr.cli.compare import compare as command
from fedmr_flwr.errors import ConfigError, RunError, RunFolderError
from fedmr_flwr.launch import engines
from fedmr_flwr.runs.folder import RunFolder

TOY = ["rounds=3", "clients=6", "clients-per-round=3", "training.local-epochs=1", "device=cpu"]


def compare(out, strategies="fedmr,fedavg,scaffold", overrides=(), **more):
    command(["quickstart", *TOY, *overrides], strategies, engine="in-process", out=out, **more)


def read(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"strategies": "fedmr,fedmr"}, "list each strategy once"),
        ({"strategies": ","}, "list each strategy once"),
        ({"strategies": "fedprox/mu"}, "'mu' is not an option; write NAME/key=value"),
        ({"strategies": "fedmrr"}, "unknown algorithm 'fedmrr'"),
        ({"strategies": "fedmr,fedavg/mu=1"}, "unknown key 'strategy.mu'"),
        ({"seeds": "0,0"}, "list each seed once"),
        ({"seeds": "0,-1"}, "list each seed once"),
        ({"seeds": ""}, "--seeds : list each seed once"),
        ({"overrides": ["run-dir=x"]}, "'run-dir=x': use --strategies, --seeds and, for all runs"),
        ({"overrides": ["strategy.name=fedavg"]}, "'strategy.name=fedavg': use --strategies"),
        ({"overrides": ["seed=1"]}, "'seed=1': use --strategies, --seeds"),
        ({"target": 80.0}, "--target 80: the accuracy must be from 0 to 1, such as 0.8"),
        ({"target": float("nan")}, "--target nan: the accuracy must be from 0 to 1"),
        ({"strategies": "fedprox/mu=0.1,fedprox//mu=0.1"}, "'' is not an option"),
        ({"grid": ["roundz=1,2"]}, "'roundz=1': unknown key 'roundz'; did you mean 'rounds'"),
    ],
)
def test_mistakes_stop_before_training(tmp_path, arguments, words):
    with pytest.raises(ConfigError, match=words):
        compare(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_jobs_need_an_engine_of_one_process(tmp_path):
    with pytest.raises(ConfigError, match="--jobs 2: engine ray uses the whole machine; add --engine in-process"):
        command(["quickstart", *TOY], out=tmp_path / "out", jobs=2)
    assert not (tmp_path / "out").exists()


def test_overrides_need_a_configuration():
    with pytest.raises(ConfigError, match="'rounds=3' is an override; name a configuration before it"):
        command(["rounds=3"])


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_trains_only_missing_runs(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    compare(out, "fedmr,fedavg", seeds="0,1")
    compare(out, seeds="0,1")
    output = capsys.readouterr().out
    assert output.count("round 3/3") == 6, "four runs, then two more"
    assert (out / "comparison.png").stat().st_size > 10_000
    table = read(out / "comparison.csv")
    assert [line["strategy"] for line in table] == ["fedmr", "fedavg", "scaffold"]
    assert [line["runs"] for line in table] == ["2"] * 3
    found = {name: RunFolder(out / name).read_rows() for name in ("fedmr-seed0", "fedavg-seed0", "scaffold-seed0")}
    drawn = [[row["clients"] for row in rows] for rows in found.values()]
    assert drawn[0] == drawn[1] == drawn[2], "the same clients are drawn in the same rounds"
    assert drawn[0] != [row["clients"] for row in RunFolder(out / "fedmr-seed1").read_rows()]
    up = {row["strategy"]: float(row["bytes_up_mean"]) for row in table}
    assert up["fedmr"] == up["fedavg"] < up["scaffold"] / 1.9, "control variates are as large as the model"
    last = [RunFolder(out / f"fedavg-seed{seed}").read_rows()[-1]["test-accuracy"] for seed in (0, 1)]
    assert float(table[1]["last_mean"]) == pytest.approx(np.mean(last))

    trained = []
    monkeypatch.setattr(engines, "run", lambda *_: trained.append(1))
    compare(out, seeds="0,1")
    assert trained == []


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_stopped_runs_are_resumed(tmp_path):
    out = tmp_path / "out"
    compare(out, "fedavg")
    folder = RunFolder(out / "fedavg-seed0")
    digest = folder.read_manifest()["model-sha256"]
    folder.note(status="running")
    folder.forget_rows_after(1)
    for path in folder.checkpoints.iterdir():
        path.unlink()
    compare(out, "fedavg")
    assert folder.read_manifest()["model-sha256"] == digest
    with pytest.raises(RunFolderError, match="was started with rounds = 3, but now it is 5; choose another"):
        compare(out, "fedavg,fedmr", ["rounds=5"])
    assert not (out / "fedmr-seed0").exists()
    compare(out, "fedavg", ["checkpoint-every=1", "client-cpus=2"])


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_damaged_run_is_left_out(tmp_path, capsys):
    out = tmp_path / "out"
    compare(out, "fedavg,fedmr")
    (out / "fedavg-seed0" / "metrics.jsonl").write_text("garbage\n")
    with pytest.raises(RunError, match="1 of 2 runs failed"):
        compare(out, "fedavg,fedmr")
    output = capsys.readouterr().out
    assert "metrics.jsonl is damaged: it has 0 of " in output
    assert [row["runs"] for row in read(out / "comparison.csv")] == ["0", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_failed_strategy_keeps_the_others(tmp_path, capsys, no_pictures, jobs):
    out = tmp_path / "out"
    with pytest.raises(RunError, match="1 of 2 runs failed and are not in the table"):
        compare(out, "fedmut/radius=1e30,fedavg", ["min-good-replies=3"], jobs=jobs)
    assert "  failed: round 2: 1 of 3 clients gave a good reply" in capsys.readouterr().out
    failed, good = read(out / "comparison.csv")
    assert (failed["strategy"], failed["runs"], failed["last_mean"]) == ("fedmut/radius=1e30", "0", "")
    assert float(good["last_mean"]) > 0
    assert "0 of 1 |" in (out / "comparison.md").read_text()
    assert json.loads((out / "fedmut_radius=1e30-seed0" / "manifest.json").read_text())["status"] == "failed"


def results(out):
    """Return the final model and the metrics of every run of a folder."""
    found = {}
    for path in sorted(out.rglob("manifest.json")):
        rows = RunFolder(path.parent).read_rows()
        kept = [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]
        found[str(path.parent.relative_to(out))] = json.loads(path.read_text())["model-sha256"], kept
    return found


@pytest.mark.slow
def test_side_by_side_gives_the_same_bits(tmp_path, capsys, no_pictures):
    grid = {"grid": ["partition={name: iid},{name: dirichlet, alpha: 1}"]}
    compare(tmp_path / "a", "scaffold", **grid)
    compare(tmp_path / "b", "scaffold", jobs=2, **grid)
    assert results(tmp_path / "a") == results(tmp_path / "b")
    assert len(results(tmp_path / "a")) == 2
    assert "[2/2] " in capsys.readouterr().out
    assert [row["cell"] for row in read(tmp_path / "b/cells.csv")] == ["iid", "dirichlet alpha=1"]


LONG = ["rounds=40", "checkpoint-every=5", "evaluate-every=20"]


def interrupted(out, how, after):
    """Stop a comparison with two jobs at a time after so many rounds of both; return the folders of its runs."""
    arguments = [
        "compare", "quickstart", *TOY, *LONG, "--engine", "in-process", "--strategies", "fedmr,fedavg", "--jobs", "2",
        "--out", str(out),
    ]  # fmt: skip
    # A shell's background job ignores Ctrl-C, and so would the processes that it starts.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heard}\nfrom fedmr_flwr.cli import main\nmain()"
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL)
    folders = [RunFolder(out / name) for name in ("fedmr-seed0", "fedavg-seed0")]
    deadline = time.monotonic() + 200
    while not all(len(folder.read_rows()) > after for folder in folders):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(how)
    assert process.wait(100) == 130
    return folders


def check_that_nobody_runs(folders):
    for folder in folders:
        with folder.locked():
            pass
    # On busy cores one may have ended before the other had begun.
    statuses = {folder.status for folder in folders}
    assert "failed" in statuses <= {"failed", "completed"}


@pytest.mark.slow
def test_interrupted_jobs_leave_no_process_and_can_be_continued(tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    for how, after in (signal.SIGTERM, 5), (signal.SIGINT, 10):  # the checkpoint of the round is written
        folders = interrupted(out, how, after)
        check_that_nobody_runs(folders)
        stopped = [folder for folder in folders if folder.status == "failed"]
    compare(out, "fedmr,fedavg", LONG)
    assert all(folder.read_manifest()["resumed"] for folder in stopped)
    compare(whole, "fedmr,fedavg", LONG)
    assert results(out) == results(whole)


@pytest.mark.slow
def test_plan_runs_nothing_but_a_round(tmp_path, capsys, no_pictures, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "out"
    # The measured round is not one that is kept.
    compare(out, "fedavg", ["keep-models=[3]"], seeds="0")
    capsys.readouterr()
    before = sorted(out.rglob("*"))
    compare(out, "fedavg,fedmr", ["keep-models=[3]"], seeds="0,1", plan=True)
    output = capsys.readouterr().out
    assert sorted(out.rglob("*")) == before
    assert output.count("measuring one round: ") == 1, "fedavg has been measured already"
    lines = {line.split()[0]: line.split()[1:4] for line in output.splitlines() if line.strip()}
    assert lines["fedavg"] == ["2", "1", "3"]
    assert lines["fedmr"] == ["2", "0", "6"]
    assert "4 runs, 1 complete; left: " in output


def test_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot use .*file: .*; choose another folder with --out"):
        compare(tmp_path / "file", "fedavg")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
