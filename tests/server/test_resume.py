"""A run that is stopped at any moment resumes to the same final model, bit for bit."""

import importlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from fedmr_flwr import cli
from fedmr_flwr.cli import runs
from fedmr_flwr.client import app as client
from fedmr_flwr.config.loading import load, to_yaml
from fedmr_flwr.errors import ConfigError, DeviceError, FedmrError, RunError, RunFolderError
from fedmr_flwr.launch import ray
from fedmr_flwr.runs import checkpoint
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server.experiment import create_folder
from fedmr_flwr.wire.grids import in_process
from tests.support.runs import digest, run, stopped

# Processes that have everything imported already and so start in no time.
_SERVERS = multiprocessing.get_context("forkserver")
_SERVERS.set_forkserver_preload(
    ["fedmr_flwr.cli", "fedmr_flwr.server.run", "fedmr_flwr.client.app", "sklearn.datasets"]
)


def fedmr(*arguments, before=""):
    """Start the command line in a process of its own; `before` is run in it first."""
    argv = ["fedmr", *map(str, arguments)]
    code = f"import sys\nsys.argv = {argv!r}\n{before}\nfrom fedmr_flwr.cli import main\nmain()"
    process = _SERVERS.Process(target=exec, args=(code, {}))
    process.start()
    return process


def ended(process, seconds=120):
    process.join(seconds)
    assert process.exitcode is not None, "it still runs"
    return process.exitcode


def resume(path, *options):
    return CliRunner().invoke(cli.app, ["resume", str(path), *options])


class Stop(Exception):
    """What stops a run in the middle."""


STRATEGIES = [
    ("strategy.name=fedavg",),
    ("strategy.unit=tensor", "strategy.first-stage-rounds=1"),
    ("training.optimizer=adam", "training.schedule=cosine", "training.warmup-rounds=1"),
    ("strategy.population=5", "strategy.weighting=examples", "strategy.evaluate-slots=true"),
    ("strategy.name=indep",),
    ("strategy.name=scaffold",),
    ("strategy.name=moon", "strategy.mu=0.5"),
    pytest.param(("strategy.name=fedgen", "strategy.generator-steps=3"), marks=pytest.mark.slow),
    pytest.param(("strategy.name=clusamp",), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("options", STRATEGIES, ids=lambda options: options[0])
def test_resumed_run_ends_the_same(toy, monkeypatch, options):
    common = ("rounds=4", "checkpoint-every=2", *options)
    whole = run(toy(*common, run="whole"))
    out = stopped(toy(*common, run="part"), monkeypatch, fits=3 * 3 + 1)  # in round 4; the checkpoint is of round 2
    assert out.status == "failed"
    assert len(out.read_rows()) == 3
    assert resume(out.path).exit_code == 0
    assert digest(out) == digest(whole)
    assert out.status == "completed"
    assert "error" not in out.read_manifest()
    assert out.read_manifest()["resumed"][0]["after-round"] == 2
    for ours, theirs in zip(out.read_rows(), whole.read_rows(), strict=True):
        assert {k: v for k, v in ours.items() if "seconds" not in k} == {
            k: v for k, v in theirs.items() if "seconds" not in k
        }


@pytest.mark.slow
def test_no_checkpoint_restarts_the_run(toy, monkeypatch):
    whole = run(toy("checkpoint-every=9", run="whole"))
    out = stopped(toy("checkpoint-every=9", run="part"), monkeypatch, fits=7)
    assert len(out.read_rows()) == 2
    assert resume(out.path).exit_code == 0
    assert [row["round"] for row in out.read_rows()] == [1, 2, 3]
    assert digest(out) == digest(whole)


@pytest.mark.slow
def test_later_rows_are_repeated(toy, monkeypatch):
    out = stopped(toy("rounds=5", "checkpoint-every=2", run="part"), monkeypatch, fits=10)
    with out.metrics.open("a") as file:
        file.write('{"round": 4, "seco')
    assert resume(out.path).exit_code == 0
    assert [json.loads(line)["round"] for line in out.metrics.read_text().splitlines()] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_damaged_checkpoint_is_reported(toy, monkeypatch):
    common = ("rounds=5", "checkpoint-every=1")
    whole = run(toy(*common, run="whole"))
    out = stopped(toy(*common, run="part"), monkeypatch, fits=10)
    newest = out.checkpoints / "round-000003.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    done = resume(out.path)
    assert done.exit_code == 0
    output = " ".join(done.output.split())
    assert "round-000003: wrong checksum; using the checkpoint before it" in output
    assert "resuming after round 2" in done.output
    assert digest(out) == digest(whole)


def test_complete_run_is_unchanged(toy):
    out = run(toy("rounds=1"))
    before = {path: path.stat().st_mtime_ns for path in out.path.rglob("*")}
    done = resume(out.path)
    assert (done.exit_code, done.output.splitlines()[-1].endswith("is complete: it has all 1 rounds")) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in out.path.rglob("*")} == before


@pytest.mark.slow
def test_moved_folder_resumes(toy, monkeypatch, tmp_path):
    whole = run(toy("checkpoint-every=1", run="whole"))
    out = stopped(toy("checkpoint-every=1", run="part"), monkeypatch, fits=4)
    moved = out.path.rename(tmp_path / "moved elsewhere")
    assert resume(moved).exit_code == 0
    assert digest(RunFolder(moved)) == digest(whole)
    assert not out.path.exists()


def test_foreign_folder_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="is not a run folder: its config.yaml is missing"):
        runs.resume(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data-sha256": "0" * 64}, "was started with data-sha256 = 0000"),
        ({"partition-sha256": "0" * 64}, "was started with partition-sha256 = 0000"),
        ("seed=9", "was started with seed = 0, but now it is 9"),
        ("clients-per-round=4", "was started with clients-per-round = 3, but now it is 4"),
        ("training.lr=0.5", "was started with training.lr = 0.05, but now it is 0.5"),
        ("strategy.name=fedavg", "was started with strategy.name = fedmr, but now it is fedavg"),
        ("strategy.unit=tensor", "was started with strategy.unit = layer, but now it is tensor"),
        ("guard=5", "was started with guard = None, but now it is 5.0"),
        ("evaluate-every=2", "was started with evaluate-every = 1, but now it is 2"),
    ],
    ids=str,
)
def test_another_experiment_is_refused(toy, monkeypatch, change, words):
    out = stopped(toy("checkpoint-every=1"), monkeypatch, fits=4)
    if isinstance(change, dict):
        out.note(**change)
    else:
        settings = load(out.config, [change])
        out.config.write_text(to_yaml(settings))
    with pytest.raises(RunFolderError) as caught:
        runs.resume(out.path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert out.read_manifest()["error"] == str(caught.value)


@pytest.mark.slow
def test_complete_run_can_be_extended(toy):
    whole = run(toy("rounds=5", run="whole"))
    out = run(toy("rounds=3", run="part"))
    assert resume(out.path, "rounds=5", "max-bad-rounds=2", "device=cpu").exit_code == 0
    assert digest(out) == digest(whole)
    assert load(out.config).rounds == 5, "the next `fedmr resume` knows it, too"
    assert "is complete: it has all 5 rounds" in resume(out.path).stdout


def test_cosine_of_all_rounds_is_not_extended(toy):
    """The rounds that are done would have had other rates."""
    cosine = ("training.schedule=cosine", "training.final-lr=0.001")
    out = run(toy("rounds=3", *cosine, run="whole"))
    with pytest.raises(RunFolderError, match=r"started with training\.decay-rounds = 3, but now it is 5"):
        run(toy("rounds=5", *cosine, run="whole"), out)
    out = run(toy("rounds=3", *cosine, "training.decay-rounds=3", run="part"))
    assert resume(out.path, "rounds=5").exit_code == 0


@pytest.mark.parametrize("override", ["seed=1", "run-dir=x", "training.lr=0.1", "strategy.unit=tensor", "guard=3"])
def test_resumed_run_keeps_its_settings(toy, monkeypatch, override):
    out = stopped(toy(), monkeypatch, fits=4)
    before = out.config.read_bytes()
    with pytest.raises(ConfigError, match=f"'{override}': a run that is resumed may change only .*rounds.*; start a"):
        runs.resume(out.path, [override])
    assert out.config.read_bytes() == before


def test_fewer_rounds_than_done_are_refused(toy):
    out = run(toy("rounds=3"))
    with pytest.raises(ConfigError, match=r"rounds is 2, but .* has already 3 rounds; raise it"):
        runs.resume(out.path, ["rounds=2"])
    assert load(out.config).rounds == 3


@pytest.mark.slow
def test_changed_code_of_ones_own_is_refused(toy, monkeypatch, tmp_path):
    module = tmp_path / "mine_of_resume.py"
    module.write_text("from fedmr_flwr.models.mlp import *\n")
    monkeypatch.syspath_prepend(tmp_path)
    out = stopped(toy("model.name=mine_of_resume:MLP", "checkpoint-every=1"), monkeypatch, fits=4)
    module.write_text("from fedmr_flwr.models.mlp import *\nlr = 3\n")
    with pytest.raises(ConfigError, match="mine_of_resume.py has changed since this process imported it"):
        runs.resume(out.path)
    importlib.reload(sys.modules[module.stem])
    with pytest.raises(RunFolderError, match="was started with own-code.mine_of_resume = "):
        runs.resume(out.path)


@pytest.mark.parametrize("refused", ["device=cuda:7", "rounds=5"])
def test_refused_resume_is_no_part_of_the_run(toy, monkeypatch, refused):
    """It was written to the configuration, and so refused for ever."""
    options = ("rounds=3", "training.schedule=cosine", "training.final-lr=0.001")
    out = stopped(toy(*options, "checkpoint-every=1"), monkeypatch, fits=4)
    before = out.config.read_bytes()
    with pytest.raises(FedmrError):
        runs.resume(out.path, [refused])
    assert out.config.read_bytes() == before


def test_refused_resume_leaves_a_complete_run_complete(toy):
    out = run(toy("rounds=2"))
    with pytest.raises(DeviceError):
        runs.resume(out.path, ["rounds=3", "device=cuda:7"])
    assert (out.status, load(out.config).rounds) == ("completed", 2)
    assert "error" not in out.read_manifest()


def test_unknown_engine_changes_nothing(toy, monkeypatch):
    out = stopped(toy(), monkeypatch, fits=4)
    before = out.read_manifest()
    with pytest.raises(ConfigError, match="unknown engine 'spark'"):
        runs.resume(out.path, engine="spark")
    assert out.read_manifest() == before


def test_busy_folder_is_not_marked_failed(toy, monkeypatch):
    settings = toy()
    out = stopped(settings, monkeypatch, fits=4)
    out.note(status="running", error=None)
    with out.locked(), pytest.raises(RunFolderError, match="in use"):
        run(settings, out)
    assert out.status == "running"
    assert "error" not in out.read_manifest()
    with out.locked(launching=True), pytest.raises(RunFolderError, match="in use"):
        ray.run(settings, None, out)
    assert out.status == "running"


@pytest.mark.slow
@pytest.mark.parametrize("torn", [b'{"round": 2, "sec', b"\0\0\0\n", b"[]\n", b""])
def test_torn_metrics_do_not_stop_resume(toy, monkeypatch, torn):
    out = stopped(toy("checkpoint-every=1"), monkeypatch, fits=7)
    first = out.metrics.read_bytes().splitlines(keepends=True)[0] if torn else b""
    out.metrics.write_bytes(first + torn)
    assert resume(out.path).exit_code == 0
    assert [row["round"] for row in out.read_rows()] == ([1, 3] if torn else [3])


def test_damaged_folder_is_one_line(toy, monkeypatch):
    out = stopped(toy(), monkeypatch, fits=4)
    out.manifest.write_text("")
    with pytest.raises(RunFolderError, match=r"manifest.json: .*; delete it"):
        runs.resume(out.path)
    out.config.write_text("")
    with pytest.raises(RunFolderError, match=r"is not a run folder: its config.yaml is missing or empty"):
        runs.resume(out.path)


@pytest.mark.slow
def test_tolerated_bad_round_stays(toy, monkeypatch):
    """The clients work again when the run is resumed, but what was trained on top of the bad round counts."""
    common = ("rounds=5", "max-bad-rounds=1", "checkpoint-every=2")
    fit, calls = client.fit, []

    def failing(*arguments, until=None):
        calls.append(1)
        if 4 <= len(calls) <= 6:
            raise Stop("no data today")  # round 2
        if until and len(calls) > until:
            raise KeyboardInterrupt
        return fit(*arguments)

    monkeypatch.setattr(client, "fit", failing)
    whole = run(toy(*common, run="whole"))
    calls.clear()
    settings = toy(*common, run="part")
    with monkeypatch.context() as patch:
        patch.setattr(client, "fit", lambda *a: failing(*a, until=10))  # in round 4
        with pytest.raises(KeyboardInterrupt):
            run(settings)
    out = RunFolder(settings.run_dir)
    assert resume(out.path).exit_code == 0
    assert [row.get("bad", False) for row in out.read_rows()] == [False, True, False, False, False]
    assert digest(out) == digest(whole)


def test_version_change_is_reported(toy, monkeypatch):
    out = stopped(toy("checkpoint-every=1"), monkeypatch, fits=4)
    out.note(versions=out.read_manifest()["versions"] | {"torch": "1.0"})
    assert "torch was 1.0 and is now 2" in resume(out.path).output


def test_folder_is_locked(toy, monkeypatch):
    settings = toy()
    out = stopped(settings, monkeypatch, fits=4)
    with out.locked():
        for again in (lambda: runs.resume(out.path), lambda: run(settings, out)):
            with pytest.raises(RunFolderError, match=rf"in use by process {os.getpid()} on .*; wait for it to end"):
                again()
    with out.locked():
        pass


@pytest.mark.slow
def test_too_many_bad_rounds_can_resume(toy, monkeypatch):
    common = ("rounds=6", "max-bad-rounds=1", "min-good-replies=2", "checkpoint-every=100")
    fit, calls = client.fit, []

    def failing(*arguments):
        calls.append(1)
        if 7 <= len(calls) <= 12 and len(calls) % 3:  # in rounds 3 and 4 one of three answers
            raise Stop("no data today")
        return fit(*arguments)

    settings = toy(*common, run="part")
    with monkeypatch.context() as patch:
        patch.setattr(client, "fit", failing)
        with pytest.raises(RunError, match=r"round 4: 1 of 3 clients gave a good reply, fewer than"):
            run(settings)
    out = RunFolder(settings.run_dir)
    assert [row.get("bad", False) for row in out.read_rows()] == [False, False, True, True]
    assert checkpoint.latest(out.checkpoints)[0].round == 3
    assert resume(out.path).exit_code == 0
    rows = out.read_rows()
    assert [row.get("bad", False) for row in rows] == [False, False, True, False, False, False]
    assert rows[2]["failures-by-kind"] == {"client-error": 2}
    assert rows[2]["test-accuracy"] == rows[1]["test-accuracy"], "in a bad round nothing changed"


@pytest.mark.slow
@pytest.mark.parametrize("least", [1, 3])
def test_dead_ray_worker_stops_the_run(toy, monkeypatch, least):
    # With clients that keep something: what they kept of that round must not count either.
    common = ("rounds=5", "max-bad-rounds=3", "checkpoint-every=100", f"min-good-replies={least}")
    common += ("strategy.name=scaffold",)
    whole = run(toy(*common, run="whole"))
    fit, calls = client.fit, []
    monkeypatch.setattr(
        in_process, "ErrorCode", SimpleNamespace(CLIENT_APP_RAISED_EXCEPTION=0)
    )  # as for Ray's errors

    def dying(*arguments):
        calls.append(1)
        if len(calls) == 8:
            raise RuntimeError("<class 'ray.exceptions.ActorDiedError'>: <'The actor died unexpectedly'>")
        return fit(*arguments)

    settings = toy(*common, run="part")
    with monkeypatch.context() as patch:
        patch.setattr(client, "fit", dying)
        with pytest.raises(RunError, match=r"round 3: a Ray worker died .*`fedmr resume`"):
            run(settings)
    out = RunFolder(settings.run_dir)
    assert out.read_rows()[-1]["failures-by-kind"] == {"actor-died": 1}
    assert resume(out.path).exit_code == 0
    assert digest(out) == digest(whole), "the round in which it died is done again, by all clients"


def random_stops(out, rng, kills, seconds):
    """Start and SIGKILL a server at random moments; the last one ends by itself. Return when each was killed."""
    moments = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        process = fedmr("resume", out.path)
        if len(moments) == kills:
            assert ended(process) == 0
            return moments
        done, more = len(out.read_rows()), rng.randrange(4)
        while process.is_alive() and len(out.read_rows()) < done + more and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.2 if more else 1.0))  # anywhere in a round, in a checkpoint or in the start
        os.kill(process.pid, signal.SIGKILL)
        assert ended(process) == -signal.SIGKILL, "it was over before it could be killed"
        moments.append(len(out.read_rows()))
    raise TimeoutError(moments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "options"),
    [(4, ()), (4, ("strategy.name=scaffold",))],
    ids=["fedmr", "scaffold"],
)
def test_random_kills_end_the_same(toy, kills, options):
    """Clients of SCAFFOLD keep something on disk, which repeated rounds must find."""
    common = (f"rounds={6 * kills}", "checkpoint-every=2", "evaluate-every=7", *options)
    whole = run(toy(*common, run="whole"))
    settings = toy(*common, run="part")
    out = create_folder(settings)
    moments = random_stops(out, random.Random(3), kills, seconds=300)
    assert len(set(moments)) > kills / 2, f"the kills were in different rounds: {moments}"
    assert digest(out) == digest(whole)
    assert [row["round"] for row in out.read_rows()] == list(range(1, 6 * kills + 1))
    assert not any("lost-state" in row for row in out.read_rows())


@pytest.mark.slow
def test_lost_client_state_is_reported(toy, monkeypatch):
    settings = toy("strategy.name=scaffold", "checkpoint-every=1", "clients=3", "rounds=4")
    out = stopped(settings, monkeypatch, fits=7)
    assert [row.get("lost-state") for row in out.read_rows()] == [None, None]
    shutil.rmtree(out.client_state / "client-000001")
    done = resume(out.path)
    assert done.exit_code == 0
    assert "client 1: its state from earlier rounds is lost; it restarted from zero" in done.output
    assert [row.get("lost-state") for row in out.read_rows()] == [None, None, [1], None]
    assert all(row["failures"] == 0 for row in out.read_rows())


KILL_WHILE_SAVING = """
import os, signal
from fedmr_flwr import files
flush, steps = os.fsync, []
def stop(descriptor):
    steps.append(descriptor)
    if len(steps) == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    flush(descriptor)
def begin(*_):
    files.os.fsync = stop
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 9, 13])
def test_kill_while_saving_ends_the_same(toy, monkeypatch, step):
    """Each checkpoint takes five flushes: metrics, tensors, folder, note, folder."""
    common = ("rounds=6", "checkpoint-every=1")
    whole = run(toy(*common, run="whole"))
    out = stopped(toy(*common, run="part"), monkeypatch, fits=4)
    before = KILL_WHILE_SAVING.format(step=step) + (
        "from fedmr_flwr.wire.grids.roster import RosterGrid\nexchange = RosterGrid.exchange\n"
        "RosterGrid.exchange = lambda *a, **more: (begin(), exchange(*a, **more))[1]\n"
    )
    assert ended(fedmr("resume", out.path, before=before)) == -signal.SIGKILL
    assert resume(out.path).exit_code == 0
    assert digest(out) == digest(whole)


@pytest.mark.slow
def test_full_disk_is_one_line(toy, monkeypatch):
    common = ("rounds=6", "checkpoint-every=1")
    whole = run(toy(*common, run="whole"))
    out = stopped(toy(*common, run="part"), monkeypatch, fits=7)
    size = (out.checkpoints / "round-000002.safetensors").stat().st_size

    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size - 1},) * 2); "
        f"sys.argv = ['fedmr', 'resume', {str(out.path)!r}]; from fedmr_flwr.cli import main; main()"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("fedmr: error: cannot write ")
    assert "round-000003.safetensors: File too large; free some space" in done.stderr
    assert out.read_manifest()["error"] in done.stderr
    assert checkpoint.latest(out.checkpoints)[0].round == 2
    assert resume(out.path).exit_code == 0
    assert digest(out) == digest(whole)
