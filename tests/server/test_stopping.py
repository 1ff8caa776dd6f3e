"""Runs that end before their last round: when, and that nothing else is different about them."""

import pytest
import torch
from typer.testing import CliRunner

from fedmr_flwr import cli
from fedmr_flwr.config.stop import Stop
from fedmr_flwr.gpu.grid import GpuGrid
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server.stopping import Stopping
from tests.support.recorder import RecordedLane
from tests.support.runs import digest, run


def rows(*accuracies, seconds=20.0):
    """Rounds with these accuracies; None: not evaluated."""
    scored = [{} if accuracy is None else {"test-accuracy": accuracy} for accuracy in accuracies]
    return [{"round": at, "seconds": seconds, **score} for at, score in enumerate(scored, 1)]


def end(stop, rows):
    """The round with which a run ends; None if none does."""
    stopping = Stopping(stop)
    return next((row["round"] for row in rows if stopping.look(row)), None)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (Stop(), None),
        (Stop(target=0.6), 5),
        (Stop(target=0.7), 8),
        (Stop(target=0.71), None),
        (Stop(patience=1), 3),
        (Stop(patience=2), 7),
        (Stop(patience=3), None),
        (Stop(minutes=1), 3),
        (Stop(minutes=1.01), 4),
        (Stop(target=0.6, minutes=1.5, patience=9), 5),
    ],
    ids=str,
)
def test_ends(stop, expected):
    # Best so far: rounds 1, 4, 5, 8. Round 2 is not evaluated, and an equal accuracy is no better one.
    assert end(stop, rows(0.5, None, 0.5, 0.55, 0.65, 0.6, 0.65, 0.7)) == expected


def test_minutes_count_evaluation():
    found = [row | {"evaluation-seconds": 40.0} for row in rows(0.1, 0.2)]
    assert end(Stop(minutes=2), found) == 2


def test_bad_round_ends_nothing():
    found = rows(0.9, 0.9, seconds=60.0)
    found[0]["bad"] = True
    assert end(Stop(target=0.8), found) == end(Stop(minutes=1), found) == 2


def test_decides_as_if_never_interrupted():
    found = rows(0.5, 0.4, 0.45, 0.4)
    for at in range(5):
        assert (Stopping(Stop(patience=3), found[:at]).reason is None) == (at < 4)


def resume(path, *options):
    return CliRunner().invoke(cli.app, ["resume", str(path), *options])


def timeless(out):
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in out.read_rows()]


def test_end_is_evaluated(toy):
    options = ("evaluate-every=9", "evaluation.train=end")
    part = run(toy("rounds=6", "stop.minutes=0.000001", *options, run="part"))
    whole = run(toy("rounds=1", *options, run="whole"))
    assert {"test-accuracy", "training-set-loss"} <= timeless(part)[0].keys()
    assert (timeless(part), digest(part)) == (timeless(whole), digest(whole))
    assert part.status == "completed"
    assert part.read_manifest()["stopped"].startswith("after round 1: its rounds have taken")


@pytest.fixture
def whole(toy):
    return run(toy("rounds=5", run="whole"))


def target(out, number):
    """The accuracy of a round, which no earlier one had."""
    accuracies = [row["test-accuracy"] for row in out.read_rows()]
    assert accuracies[number - 1] > max(accuracies[: number - 1])
    return f"stop.target={accuracies[number - 1]}"


def test_stopped_run_is_the_first_rounds_and_may_continue(toy, whole):
    part = run(toy("rounds=5", target(whole, 2), run="part"))
    assert timeless(part) == timeless(whole)[:2]
    again = resume(part.path)
    assert again.exit_code == 0 and "is complete after round 2: test accuracy" in again.output
    refused = resume(part.path, "rounds=9")
    assert "is complete after round 2" in str(refused.exception)
    assert resume(part.path, "stop.target=null").exit_code == 0
    assert (timeless(part), digest(part)) == (timeless(whole), digest(whole))
    assert "stopped" not in part.read_manifest()


def test_gpu_engine_ends_there_too(toy, whole):
    settings = toy("rounds=5", "engine=gpu", target(whole, 2), run="gpu")
    part = run(settings, grid=GpuGrid(settings, device=torch.device("cpu"), lane=RecordedLane))
    scores = [[row["test-loss"] for row in out.read_rows()] for out in (part, whole)]
    assert scores[0] == scores[1][:2]


def test_killed_after_its_last_round_ends_there(toy, whole, monkeypatch):
    settings = toy("rounds=5", target(whole, 2), run="part")
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(settings)
    part = RunFolder(settings.run_dir)
    assert (part.status, resume(part.path).exit_code) == ("failed", 0)
    assert (part.status, len(part.read_rows())) == ("completed", 2)
