"""Every study in conf/studies says which data it needs, can be planned, and starts."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from fedmr_flwr.analysis.studies.jobs import run_all
from fedmr_flwr.analysis.studies.plan import plan
from fedmr_flwr.analysis.studies.study import study_of
from fedmr_flwr.cli.compare import compare
from fedmr_flwr.launch import engines

FOLDER = Path(__file__).parents[3] / "conf" / "studies"
STUDIES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
LARGE = [name for name in STUDIES if not name.startswith("small-")]
# Two rounds of two clients that take one pass over a few examples.
SHORT = ["rounds=2", "training.local-epochs=1", "device=cpu", "engine=in-process"]


@pytest.fixture
def data_dir(tmp_path, write_fashion_mnist, write_cifar, write_femnist):
    """A folder with small data sets in their true formats."""
    folder = tmp_path / "data"
    write_fashion_mnist(folder, packed=True, train=400)
    write_cifar(folder, "CIFAR10", count=60)
    write_cifar(folder, "CIFAR100", count=300)
    write_femnist(folder / "femnist", writers=5)
    return folder


def short(name, data_dir):
    """Return the overrides that make a study short."""
    text = (FOLDER / f"{name}.yaml").read_text()
    few = ["data.train-examples=200"] if "train-examples" in text else []
    if "clients-per-round" in text:  # of the 100 that it needs, each has few examples
        return [*SHORT, *few, f"data-dir={data_dir}", "partition={name: iid}"]
    return [*SHORT, *few, f"data-dir={data_dir}", "clients=4", "clients-per-round=2"]


@pytest.mark.parametrize("name", STUDIES)
def test_first_line_names_the_data(name):
    first = (FOLDER / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# Data: ")
    assert "data.download=true" in first


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_studies_have_the_published_setting(name, tmp_path):
    for run in plan(study_of([f"studies/{name}"]), [], tmp_path):
        settings = run.settings
        assert (settings.training.lr, settings.training.local_epochs, settings.training.batch_size) == (0.01, 5, 50)
        assert (settings.rounds == 2000) == (name in LARGE)
        assert (settings.data.train_examples is None) == (name in LARGE)


def test_main_table_is_the_papers(tmp_path):
    runs = plan(study_of(["studies/main-table"], seeds="0"), [], tmp_path)
    cells = list(dict.fromkeys(run.cell.label for run in runs))
    assert len(cells) == 3 * 2 * 4 + 3
    assert "cifar100-vgg16, dirichlet alpha=0.5" in cells
    assert "femnist-cnn" in cells
    names = {run.variant.label for run in runs}
    assert names >= {"fedavg", "fedprox", "scaffold", "moon", "fedgen", "clusamp", "fedexp", "fedmr"}


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_starts(name, tmp_path, data_dir, no_pictures):
    planned = plan(study_of([f"studies/{name}"], seeds="0"), short(name, data_dir), tmp_path / "out")
    # The first cell: all of them, though short, would take hours. That each configuration runs is a test of its own.
    chosen = [run for run in planned if run.cell == planned[0].cell]
    ended = [*run_all(chosen, 1, Console(file=io.StringIO()), engines.run)]
    assert [run.error for run in ended] == [""] * len(chosen)
    assert all(len(run.folder.read_rows()) == 2 for run in ended)


@pytest.mark.slow
def test_a_study_becomes_tables_and_curves(tmp_path, data_dir, no_pictures, capsys):
    name = "small-aggregation-or-recombination"
    options = ["rounds=2", "training.local-epochs=1", "device=cpu", "clients=4", "clients-per-round=2"]
    few = ["data.train-examples=200", f"data-dir={data_dir}"]
    compare([f"studies/{name}", *options, *few], engine="in-process", out=tmp_path / "out")
    assert "[16/16] iid: fedmr, seed 0" in capsys.readouterr().out
    rows = (tmp_path / "out" / "cells.csv").read_text().splitlines()
    assert rows[0] == "cell,fedavg_mean,fedavg_std,fedavg/weighting=uniform_mean,fedavg/weighting=uniform_std," + (
        "indep_mean,indep_std,fedmr_mean,fedmr_std"
    )
    assert len(rows) == 5
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 10_000
