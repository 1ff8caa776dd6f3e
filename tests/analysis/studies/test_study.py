"""What is compared: cells, strategies and seeds as they are written."""

import pytest

from fedmr_flwr.analysis.studies.study import Variant, cells_of, parse_grid, parse_strategies, study_of
from fedmr_flwr.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("fedmr,fedavg", ["fedmr", "fedavg"]),
        (" fedmr , fedmut/radius=1/acceleration=0,", ["fedmr", "fedmut/radius=1/acceleration=0"]),
        ('fedmr/unit=["a","b"],fedavg', ['fedmr/unit=["a","b"]', "fedavg"]),
    ],
)
def test_strategies_are_separated_by_commas(text, labels):
    assert parse_strategies(text) == labels


def test_options_name_the_folder():
    variant = Variant("flwr:FedAdam/options.eta=0.01")
    assert variant.overrides() == ["strategy.name=flwr:FedAdam", "strategy.options.eta=0.01"]
    assert variant.folder == "flwr_FedAdam_options.eta=0.01"


def test_a_strategy_may_set_any_key():
    variant = Variant("fedmr/clients-per-round=3/unit=tensor/training.lr=0.1")
    assert variant.overrides() == [
        "strategy.name=fedmr", "clients-per-round=3", "strategy.unit=tensor", "training.lr=0.1",
    ]  # fmt: skip


def test_cells_are_all_combinations():
    study = study_of(
        ["quickstart"], grid=["training.lr=0.1,0.2", "partition={name: dirichlet, alpha: 1},{name: iid}"]
    )
    found = cells_of(study)
    assert [cell.label for cell in found] == [
        "lr=0.1, dirichlet alpha=1", "lr=0.1, iid", "lr=0.2, dirichlet alpha=1", "lr=0.2, iid",
    ]  # fmt: skip
    assert found[1].chosen == ("training.lr=0.1", "partition={name: iid}")
    assert found[0].folder == "lr=0.1_dirichlet_alpha=1"


def test_one_cell_has_no_name():
    (cell,) = cells_of(study_of(["quickstart"]))
    assert (cell.label, cell.folder) == ("", "")


def test_configurations_name_their_cells():
    study = study_of(["conf/cifar10-cnn.yaml", "quickstart"])
    assert [cell.label for cell in cells_of(study)] == ["cifar10-cnn", "quickstart"]


def test_keys_of_one_ending_are_named_in_full():
    study = study_of(["quickstart"], grid=["data.name=a", "model.name=b"])
    assert cells_of(study)[0].label == "data.name=a, model.name=b"


@pytest.mark.parametrize("axis", ["training.lr", "training.lr=", "=1", "a=1,,2"])
def test_grid_needs_a_key_and_values(axis):
    with pytest.raises(ConfigError, match="--grid .*: write each key once, as KEY=VALUE,VALUE"):
        parse_grid([axis])
    with pytest.raises(ConfigError, match="--grid a=2: write each key once"):
        parse_grid(["a=1", "a=2"])


@pytest.mark.parametrize("key", ["seed", "run-dir", "strategy.name", "strategy"])
def test_grid_leaves_strategies_and_seeds_alone(key):
    with pytest.raises(ConfigError, match=f"--grid {key}: use --strategies, --seeds and"):
        cells_of(study_of(["quickstart"], grid=[f"{key}=1,2"]))


def test_studies_file_holds_everything(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "cells:\n  - configurations: [quickstart]\n    overrides: {rounds: 7}\n    grid: {training.lr: [0.1, 0.2]}\n"
        "strategies: [fedmr, fedavg]\nseeds: [3, 4]\n"
    )
    study = study_of([str(path)], seeds="5", grid=["clients=6,7"])
    assert (study.strategies, study.seeds) == (("fedmr", "fedavg"), (5,))
    assert [cell.label for cell in cells_of(study)][:2] == ["lr=0.1, clients=6", "lr=0.1, clients=7"]
    first = cells_of(study)[0]
    assert (first.overrides, first.chosen) == (("rounds=7",), ("training.lr=0.1", "clients=6"))
    with pytest.raises(ConfigError, match="a study is compared by itself"):
        study_of([str(path), "quickstart"])
    path.write_text("cells:\n  - configuration: [quickstart]\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: unknown key 'cells.0.configuration'"):
        study_of([str(path)])
