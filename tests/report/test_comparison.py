import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from fedmr_flwr.cli import runs
from fedmr_flwr.errors import ConfigError, RunError, RunFolderError
from fedmr_flwr.launch import engines
from fedmr_flwr.report import comparison, plots
from fedmr_flwr.report.comparison import Variant, parse_strategies, summarise
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server.experiment import create_folder

CONF = Path(__file__).parents[2] / "conf" / "quickstart.yaml"


def rows(accuracies, every=2, clients=4, seconds=0.5):
    """Rounds of which every second one is evaluated."""
    found = []
    for at in range(1, every * len(accuracies) + 1):
        row = {"round": at, "seconds": seconds * at, "clients": list(range(clients))}
        row |= {
            "bytes-down": {"arrays": 400 * clients, "control": 100 * clients},
            "bytes-up": {"arrays": 200 * clients},
        }
        if at % every == 0:
            row["test-accuracy"] = accuracies[at // every - 1]
        found.append(row)
    return found


def read(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


TWO = {
    "fedmr": [rows([0.1, 0.5, 0.7, 0.6, 0.8, 0.7]), rows([0.2, 0.6, 0.6, 0.7, 0.9, 0.8])],
    "fed_avg/mu=0.1": [rows([0.2, 0.3, 0.4, 0.55, 0.5, 0.519]), rows([0.1, 0.1, 0.2, 0.3, 0.4, 0.5])],
}


def test_numbers_by_hand():
    (first, second), target = summarise(TWO, 2)
    assert target == pytest.approx(0.5), "the highest whole percentage that all four have reached"
    assert first.last == (0.7, 0.8)
    assert first.best == (0.8, 0.9)
    assert first.late == pytest.approx((0.66, 0.72)), "the mean of the last five of six"
    assert first.reached == (4, 4)
    assert second.reached == (8, 12)
    assert first.bytes_down == (500, 500)
    assert first.bytes_up == (200, 200)
    assert first.seconds == (3.25, 3.25)


def test_unreached_target_is_infinite():
    (first, second), target = summarise(TWO, 2, 0.65)
    assert target == 0.65
    assert first.reached == (6, 8)
    assert second.reached == (np.inf, np.inf)
    assert comparison.cells(second)[5] == "–"


def test_mean_and_deviation_over_seeds():
    (first, _), _ = summarise(TWO, 2)
    assert comparison.cells(first)[:6] == ["fedmr", "2", "75.0 ± 7.1", "85.0 ± 7.1", "69.0 ± 4.2", "4.0 ± 0.0"]


def test_one_seed_has_no_deviation():
    (one, none), target = summarise({"fedmr": TWO["fedmr"][:1], "fedavg": []}, 1)
    assert comparison.cells(one) == ["fedmr", "1", "70.0", "80.0", "66.0", "10", "0.00", "0.00", "3.25"]
    assert target == pytest.approx(0.8)
    assert comparison.cells(none) == ["fedavg", "0 of 1", *7 * "–"]
    (nothing,), target = summarise({"fedavg": []}, 3)
    assert (nothing.runs, target) == (0, 0)


def test_markdown_is_aligned():
    text = comparison.to_markdown(*summarise(TWO, 2))
    head, rule, *body = text.splitlines()
    assert len({len(line) for line in (head, rule, *body)}) == 1
    assert [line.count("|") for line in (head, rule, *body)] == [10] * 4
    assert set(rule) == set("|-: ")
    assert "| fed_avg/mu=0.1 |    2 | 51.0 ± 1.3 |" in text
    assert "rounds to 50 %" in head


def test_latex_is_escaped():
    text = comparison.to_latex(*summarise(TWO, 2, 0.65))
    assert text.startswith("\\begin{tabular}{lrrrrrrrr}\n\\toprule\nstrategy & runs & ")
    assert text.endswith("\\\\\n\\bottomrule\n\\end{tabular}\n")
    assert "rounds to 65 \\%" in text
    assert "fed\\_avg/mu=0.1 & 2 & 51.0 $\\pm$ 1.3 & " in text
    assert " & -- & " in text
    assert {line.count("&") for line in text.splitlines() if line.endswith("\\\\")} == {8}


def test_csv_has_full_precision():
    first, second = csv.DictReader(io.StringIO(comparison.to_csv(*summarise(TWO, 2, 0.65))))
    assert float(first["late_mean"]) == pytest.approx(0.69)
    assert float(first["last_std"]) == pytest.approx(np.std([0.7, 0.8], ddof=1))
    assert float(first["bytes_down_mean"]) == 500
    assert (second["reached_mean"], second["reached_std"]) == ("", "")
    assert first["target"] == "0.65"


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("fedmr,fedavg", ["fedmr", "fedavg"]),
        (" fedmr , fedmut/radius=1/acceleration=0,", ["fedmr", "fedmut/radius=1/acceleration=0"]),
        ('fedmr/unit=["a","b"],fedavg', ['fedmr/unit=["a","b"]', "fedavg"]),
    ],
)
def test_strategies_are_separated_by_commas(text, labels):
    assert [variant.label for variant in parse_strategies(text)] == labels


def test_options_name_the_folder():
    variant = Variant("flwr:FedAdam/options.eta=0.01")
    assert variant.overrides() == ["strategy.name=flwr:FedAdam", "strategy.options.eta=0.01"]
    assert variant.folder(3) == "flwr_FedAdam_options.eta=0.01-seed3"


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
        ({"overrides": ["run-dir=x"]}, "'run-dir=x': use --strategies, --seeds and, for all runs"),
        ({"overrides": ["strategy.name=fedavg"]}, "'strategy.name=fedavg': use --strategies"),
        ({"overrides": ["seed=1"]}, "'seed=1': use --strategies, --seeds"),
        ({"seeds": ""}, "--seeds : list each seed once"),
        ({"target": 80.0}, "--target 80: the accuracy must be from 0 to 1, such as 0.8"),
        ({"target": float("nan")}, "--target nan: the accuracy must be from 0 to 1"),
        ({"strategies": "fedprox/mu=0.1,fedprox//mu=0.1"}, "'' is not an option"),
    ],
)
def test_mistakes_stop_before_training(tmp_path, arguments, words):
    with pytest.raises(ConfigError, match=words):
        runs.compare(CONF, out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


TOY = ["rounds=3", "clients=6", "clients-per-round=3", "training.local-epochs=1", "device=cpu"]


def compare(out, strategies="fedmr,fedavg,scaffold", overrides=(), **more):
    runs.compare(CONF, [*TOY, *overrides], strategies, engine="in-process", out=out, **more)


def planned(out, *overrides):
    return comparison.plan(CONF, [*TOY, *overrides], parse_strategies("fedavg"), None, out)


@pytest.mark.parametrize("change", ["wire=float16", "guard=5", "min-good-replies=2", "data.normalisation=none"])
def test_runs_with_another_result_are_refused(tmp_path, change):
    ((_, settings),) = planned(tmp_path)
    create_folder(settings)
    with pytest.raises(
        RunFolderError, match=f"fedavg-seed0 was started with {change.split('=')[0].split('.')[0]} = "
    ):
        planned(tmp_path, change)


@pytest.mark.parametrize(
    "change", ["engine=in-process", "client-cpus=2", "checkpoint-every=1", "ray.client-gpus=0.5"]
)
def test_runs_computed_otherwise_are_used(tmp_path, change):
    ((_, settings),) = planned(tmp_path)
    create_folder(settings)
    planned(tmp_path, change)


def test_runs_on_other_data_are_refused(tmp_path):
    ((_, settings),) = planned(tmp_path)
    create_folder(settings).note(**{"data-sha256": "0" * 64})
    with pytest.raises(RunFolderError, match="fedavg-seed0 was started with data-sha256 = 000"):
        planned(tmp_path)


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
    last = (
        found["fedavg-seed0"][-1]["test-accuracy"],
        RunFolder(out / "fedavg-seed1").read_rows()[-1]["test-accuracy"],
    )
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
    with pytest.raises(
        RunFolderError, match="fedavg-seed0 was started with rounds = 3, but now it is 5; choose another"
    ):
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
@pytest.mark.usefixtures("no_pictures")
def test_failed_strategy_keeps_the_others(tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(RunError, match="1 of 2 runs failed and are not in the table"):
        compare(out, "fedmut/radius=1e30,fedavg", ["min-good-replies=3"])
    assert "  failed: round 2: 1 of 3 clients gave a good reply" in capsys.readouterr().out
    failed, good = read(out / "comparison.csv")
    assert (failed["strategy"], failed["runs"], failed["last_mean"]) == ("fedmut/radius=1e30", "0", "")
    assert float(good["last_mean"]) > 0
    assert "| fedmut/radius=1e30 | 0 of 1 |" in (out / "comparison.md").read_text()
    assert json.loads((out / "fedmut_radius=1e30-seed0" / "manifest.json").read_text())["status"] == "failed"


def test_plot_has_a_line_and_band_each(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "_write", lambda figure, path: figures.append(figure))
    plots.comparison(TWO | {"none": [], "single": TWO["fedmr"][:1]}, "a title", tmp_path / "x.png")
    (axes,) = figures[0].axes
    assert [line.get_label() for line in axes.lines] == ["fedmr", "fed_avg/mu=0.1", "single"]
    np.testing.assert_allclose(axes.lines[0].get_xydata()[1], [4, 55])
    assert len(axes.collections) == 2, "a single run has no band"
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((10, 90))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("round", "test accuracy (%)")


def test_shared_folders_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"two of them have the same folder .*fedmr_unit=_a_-seed0; write one"):
        comparison.plan(CONF, [], parse_strategies("fedmr/unit=['a'],fedmr/unit=[\"a\"]"), None, tmp_path)


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot use .*file: .*; choose another folder with --out"):
        compare(tmp_path / "file", "fedavg")
    (tmp_path / "out" / "fedmr-seed0").mkdir(parents=True)
    (tmp_path / "out" / "fedmr-seed0" / "mine.txt").write_text("")
    with pytest.raises(RunFolderError, match="fedmr-seed0 is not empty; choose another folder with --out"):
        compare(tmp_path / "out", "fedavg,fedmr")
    assert not (tmp_path / "out" / "fedavg-seed0").exists()
