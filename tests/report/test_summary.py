"""What a run has come to, worked out by hand."""

import json
import math

import pytest

from fedmr_flwr.report.summary import score
from fedmr_flwr.runs.folder import RunFolder
from tests.support.curves import rows


@pytest.fixture
def folder(tmp_path):
    """Six rounds of four clients; 2, 4 and 6 are evaluated, and the fifth is bad."""
    out = RunFolder.create(tmp_path / "run", "{}")
    for row in rows([0.5, 0.7, 0.6]):
        more = {"failures": 1, "train-loss": 1 / row["round"]}
        if "test-accuracy" in row:
            more |= {"test-loss": 2 / row["round"], "evaluation-seconds": 0.25}
        out.add_row(row | more | ({"bad": True} if row["round"] == 5 else {}))
    out.note(status="completed", strategy={"name": "fedavg"}, stopped="after round 6: enough")
    return out


def test_score_by_hand(folder):
    found = score(folder, seed=3, rounds=9, target=0.65)
    assert found["run"] == str(folder.path)
    assert (found["status"], found["completed"], found["stopped"]) == ("completed", True, "after round 6: enough")
    assert (found["rounds"], found["rounds-configured"], found["rounds-bad"], found["failures"]) == (6, 9, 1, 6)
    assert (found["strategy"], found["seed"], found["collapsed"]) == ("fedavg", 3, False)
    assert (found["test-accuracy"], found["best-accuracy"], found["best-round"]) == (0.6, 0.7, 4)
    assert (found["test-loss"], found["train-loss"]) == pytest.approx((1 / 3, 1 / 6), abs=1e-6)
    assert found["accuracy-last-5"] == pytest.approx(0.6)
    assert found["accuracy-sd-last-10"] == pytest.approx(0.1)
    assert (found["target"], found["rounds-to-target"]) == (0.65, 4)
    assert found["bytes-to-target"] == 4 * 4 * 700, "four rounds of four clients"
    assert found["seconds-to-target"] == 0.5 + 1 + 1.5 + 2
    assert (found["bytes-down"], found["bytes-up"]) == (6 * 4 * 500, 6 * 4 * 200)
    assert (found["seconds"], found["evaluation-seconds"], found["seconds-per-round"]) == (10.5, 0.75, 1.75)


def test_unreached_target_is_null(folder):
    found = score(folder, 0, 6, 0.9)
    assert [found[f"{name}-to-target"] for name in ("rounds", "bytes", "seconds")] == [None] * 3


def test_collapse_is_told(folder):
    folder.add_row(rows([0.1])[1] | {"round": 7, "failures": 0, "collapse": "fallen", "test-loss": math.nan})
    found = score(folder, 0, 7, None)
    assert (found["collapsed"], found["collapse-rounds"], found["test-loss"]) == (True, [7], None)


def test_keys_are_the_same_without_a_round(folder, tmp_path):
    fresh = score(RunFolder.create(tmp_path / "fresh", "{}"), 0, 9, None)
    assert list(fresh) == list(score(folder, 0, 9, None))
    assert (fresh["status"], fresh["completed"]) == ("starting", False)
    assert (fresh["rounds"], fresh["test-accuracy"]) == (0, None)
    json.dumps(fresh, allow_nan=False)
