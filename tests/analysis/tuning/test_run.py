"""Tuning: trials that are trained, compared, continued and killed."""

import numpy as np
import pandas as pd
import pytest

from fedmr_flwr.analysis.studies.plan import plan
from fedmr_flwr.analysis.studies.study import study_of
from fedmr_flwr.analysis.tuning.run import score_of
from fedmr_flwr.cli.tune import tune
from fedmr_flwr.config.loading import load
from fedmr_flwr.errors import RunError
from fedmr_flwr.launch import engines
from fedmr_flwr.runs.folder import RunFolder

TOY = ["rounds=3", "clients=6", "clients-per-round=3", "training.local-epochs=1", "model.name=mlp", "device=cpu"]

pytestmark = pytest.mark.usefixtures("no_pictures")


def run(out, *overrides, strategies="fedprox,fedavg", trials=3, **more):
    tune("quickstart", [*TOY, *overrides], strategies, trials, engine="in-process", out=out, **more)
    return pd.read_csv(out / "trials.csv")


def files(out):
    """Return the tables, and the final model of each trial."""
    found = {path.name: path.read_text() for path in out.iterdir() if path.is_file()}
    models = {
        str(path.relative_to(out)): RunFolder(path.parent).read_manifest()["model-sha256"]
        for path in out.rglob("manifest.json")
    }
    return found, models


@pytest.mark.slow
def test_a_killed_tuning_continues_where_it_was(tmp_path, monkeypatch, capsys):
    table = run(tmp_path / "whole", strategies="fedavg", trials=4)
    # Four trials of one round, and two of three.
    assert sorted(table["rounds"]) == [1, 1, 3, 3]
    assert table["rounds"][0] == 3
    train, calls = engines.run, []

    def killed(settings, display, prepared=None):
        calls.append(settings.run_dir)
        if len(calls) == 6:  # after one of the two has three rounds
            raise KeyboardInterrupt
        return train(settings, display, prepared)

    monkeypatch.setattr(engines, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", strategies="fedavg", trials=4)
    run(tmp_path / "killed", strategies="fedavg", trials=4)
    assert len(calls) == 4 + 2 + 1, "what was complete is not trained again"
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    run(tmp_path / "killed", strategies="fedavg", trials=4)
    assert len(calls) == 7


@pytest.mark.slow
def test_best_is_what_compare_runs_on_test_data(tmp_path):
    out = tmp_path / "out"
    table = run(out, "training.lr=0.001", rungs=1)
    for (label, own), planned in zip(
        table.groupby("strategy", sort=False), plan(study_of([str(out / "best.yaml")]), [], tmp_path), strict=True
    ):
        best = own.loc[own["validation_accuracy"].idxmax()]
        assert best["validation_accuracy"] >= own.iloc[0]["validation_accuracy"], "not worse than the default"
        settings = planned.settings
        assert settings.strategy.name == label
        assert (settings.data.validation, settings.rounds, settings.model.name) == (0, 3, "mlp")
        assert settings.training.lr == best["training.lr"]
        assert settings.training.weight_decay == best["training.weight-decay"]


def test_another_test_set_changes_nothing(tmp_path):
    rng = np.random.default_rng(0)
    own = {"x_train": rng.integers(0, 256, (200, 8, 8), dtype=np.uint8), "y_train": np.arange(200) % 4}
    found = []
    for name in ("a", "b"):  # equal, but for their test parts
        tests = {"x_test": rng.integers(0, 256, (30, 8, 8), dtype=np.uint8), "y_test": rng.integers(0, 4, 30)}
        np.savez(tmp_path / f"{name}.npz", **own, **tests)
        path = f"data.name=npz:{tmp_path / name}.npz"
        run(tmp_path / name, path, "rounds=2", "partition.name=iid", strategies="fedmr", trials=2, rungs=1)
        tables, models = files(tmp_path / name)
        found.append((tables["trials.csv"], models))
    assert found[0] == found[1]


def test_a_strategy_whose_trials_all_fail_does_not_end_the_others(tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(RunError, match="^no trial of fedmut/radius=1e30 was completed; see trials.csv in "):
        run(out, "min-good-replies=3", strategies="fedmut/radius=1e30,fedavg", trials=2, rungs=1)
    assert capsys.readouterr().out.count("  failed: round 2: 1 of 3 clients gave a good reply") == 2
    failed, good = (own for _, own in pd.read_csv(out / "trials.csv").groupby("strategy", sort=False))
    assert good["validation_accuracy"].notna().all() and failed["validation_accuracy"].isna().all()
    assert failed["problem"].str.startswith("round 2: ").all()


def test_score_is_that_of_the_evaluations_that_are_due():
    rows = [{"round": at, "validation-accuracy": at / 10} for at in range(1, 9)]
    settings = load("quickstart", ["rounds=8"])
    assert score_of(rows, settings) == pytest.approx((0.4 + 0.5 + 0.6 + 0.7 + 0.8) / 5)
    rare = load("quickstart", ["rounds=8", "evaluate-every=3"])
    assert score_of(rows, rare) == pytest.approx((0.3 + 0.6 + 0.8) / 3)


@pytest.mark.slow
def test_side_by_side_gives_the_same_trials(tmp_path):
    run(tmp_path / "a", strategies="fedavg", trials=2)
    run(tmp_path / "b", strategies="fedavg", trials=2, jobs=2)
    assert files(tmp_path / "a") == files(tmp_path / "b")
