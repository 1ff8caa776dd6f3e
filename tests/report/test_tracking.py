"""Trackers: every round is there once, under the names of the metrics, and the run is the same with them."""

import ast
import io
import json
import math
import re
import struct
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from fedmr_flwr import cli
from fedmr_flwr.config.loading import load
from fedmr_flwr.errors import ConfigError, RunError
from fedmr_flwr.report import tracking
from fedmr_flwr.runs.folder import RunFolder
from tests.support import runs


def run(settings):
    text = io.StringIO()
    return runs.run(settings, output=text), text.getvalue()


def fedmr(*arguments):
    done = CliRunner().invoke(cli.app, [*map(str, arguments)])
    assert done.exit_code == 0, done.exception
    return done.output


def events(out):
    """What TensorBoard reads: the steps and values of each name."""
    found = EventAccumulator(str(out.path / "tensorboard")).Reload()
    return {name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


@pytest.mark.slow
def test_resumed_run_has_every_round_once(toy, monkeypatch):
    options = ("rounds=4", "checkpoint-every=2", "evaluation.classes=end", "evaluate-every=2")
    whole, _ = run(toy(*options, run="whole"))
    out = runs.stopped(toy(*options, "track=tensorboard", run="part"), monkeypatch, fits=3 * 3 + 1)
    assert [step for step, _ in events(out)["seconds"]] == [1, 2, 3], "round 3 is repeated from the checkpoint of 2"
    fedmr("resume", out.path)
    assert out.read_manifest()["model-sha256"] == whole.read_manifest()["model-sha256"]
    found, rows = events(out), out.read_rows()
    assert [step for step, _ in found["seconds"]] == [1, 2, 3, 4]
    for name in ("train-loss", "test-loss", "test-accuracy", "similarity", "macro-f1"):
        expected = [(row["round"], pytest.approx(row[name])) for row in rows if name in row]
        assert found[name] == expected and expected
    assert found["bytes-down/arrays"][0] == (1, rows[0]["bytes-down"]["arrays"])
    assert found["spread/conv1"][3] == (4, pytest.approx(rows[3]["spread"][0]))
    classes = json.loads(out.classes.read_text())["classes"]
    assert found["recall/7"] == [(4, pytest.approx(classes["7"]["recall"]))]
    assert set(found) == set(tracked_names(out)), "the same names as an export's"


def tracked_names(out):
    """The names of an export of the same run to a new place."""
    (out.path / "tensorboard").rename(out.path / "first")
    fedmr("export", out.path, "--to", "tensorboard")
    return events(out)


def test_second_export_adds_nothing(toy):
    out, _ = run(toy("rounds=2"))
    assert str(out.path / "tensorboard") in fedmr("export", out.path, "--to", "tensorboard")
    once = events(out)
    fedmr("export", out.path, "--to", "tensorboard")
    assert events(out) == once
    fedmr("resume", out.path, "rounds=3")
    fedmr("export", out.path, "--to", "tensorboard")
    assert [step for step, _ in events(out)["seconds"]] == [1, 2, 3]


class Memory:
    """A tracker that keeps what it gets, or fails at a round."""

    place = "memory"

    def __init__(self, last=0, fails=None):
        self.last, self.fails, self.got, self.closed = last, fails, {}, False

    def write(self, number, values):
        if number == self.fails:
            raise OSError("no\nnetwork")
        self.got[number] = values

    def close(self):
        self.closed = True


@pytest.fixture
def track(tmp_path, monkeypatch):
    """Pass rows to a tracker, those before the run is resumed and those after."""

    def make(memory, earlier, later=()):
        monkeypatch.setitem(tracking.TRACKERS, "wandb", lambda out, parameters: memory)
        out = RunFolder.create(tmp_path / "run", "{}")
        for row in earlier:
            out.add_row(row)
        said = []
        with tracking.tracking(["wandb"], out, load("quickstart"), said.append) as write:
            for row in later:
                write(row)
        return said

    return make


def rows(*numbers, **more):
    return [{"round": number, "seconds": 1.0, **more} for number in numbers]


def test_rounds_that_may_be_repeated_are_left_out(track):
    memory = Memory(last=1)
    track(memory, [*rows(1, 2), *rows(3, bad=True)], [*rows(4), *rows(5, problem="it diverged")])
    assert list(memory.got) == [2, 4]


def test_only_finite_numbers_are_written(track):
    memory = Memory()
    values = {"test-loss": math.nan, "clients": [1, 2], "collapse": "fallen", "client-accuracy": {"mean": 0.5}}
    track(memory, [], rows(1, **values))
    assert memory.got == {1: {"seconds": 1.0, "client-accuracy/mean": 0.5}}


def test_failure_during_a_run_is_reported_once(track):
    memory = Memory(fails=2)
    said = track(memory, [], rows(1, 2, 3))
    assert list(memory.got) == [1]
    assert [line.partition(";")[0] for line in said] == ["wandb: memory", "wandb has failed: OSError: no network"]


def test_failure_at_the_start_is_an_error(track):
    memory = Memory(fails=1)
    with pytest.raises(RunError, match="wandb has failed: OSError: no network"):
        track(memory, rows(1))
    assert memory.closed


def test_missing_package_is_named_before_a_run(toy, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'^mlflow is not installed: pip install "fedmr_flwr\[mlflow\]"$'):
        run(toy("track=[mlflow]"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_nothing_is_imported_unless_asked():
    for path in Path(tracking.__file__).parents[1].rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not re.match(r"(import|from) (torch\.utils\.)?(tensorboard|wandb|mlflow)", ast.unparse(node))


def test_mlflow_has_every_round_once(toy, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out, _ = run(toy("rounds=2", "track=mlflow"))
    fedmr("resume", out.path, "rounds=3")
    fedmr("export", out.path, "--to", "mlflow")
    store = MlflowClient(f"sqlite:///{out.path.parent / 'mlflow.db'}")
    (found,) = store.search_runs([store.get_experiment_by_name("fedmr").experiment_id])
    history = [(metric.step, metric.value) for metric in store.get_metric_history(found.info.run_id, "test-accuracy")]
    assert history == [(row["round"], row["test-accuracy"]) for row in out.read_rows()]
    assert found.data.params["strategy.unit"] == "layer"
    assert found.info.status == "FINISHED"


def wandb_records(content):
    """Read W&B's file: a header of seven bytes, then blocks of 32 KiB with pieces of records, as in LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, record = 7, b""
    while at + 7 <= len(content):
        if (rest := 32768 - at % 32768) < 7:
            at += rest
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last piece
            yield Record.FromString(record)
            record = b""


def test_wandb_offline_has_every_round_once(toy, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    out, _ = run(toy("rounds=2", "track=wandb"))
    fedmr("resume", out.path, "rounds=3")
    (file,) = (out.path / "wandb").glob("offline-run-*/*.wandb")
    steps = []
    for record in wandb_records(file.read_bytes()):
        if record.HasField("history"):
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            steps.append((record.history.step.num, float(items["test-accuracy"])))
    assert steps == [(row["round"], row["test-accuracy"]) for row in out.read_rows()]
