"""The runs of a study, and which earlier runs they may use."""

import json

import numpy as np
import pytest

from fedmr_flwr.analysis.studies import earlier
from fedmr_flwr.analysis.studies.plan import plan
from fedmr_flwr.analysis.studies.study import study_of
from fedmr_flwr.config.identity import own_code
from fedmr_flwr.data import datasets, partition_files, partitions
from fedmr_flwr.errors import ConfigError, RunFolderError
from fedmr_flwr.server.experiment import create_folder

TOY = ["rounds=3", "clients=6", "clients-per-round=3", "training.local-epochs=1", "device=cpu"]


def planned(out, *overrides, strategies="fedavg", **options):
    return plan(study_of(["quickstart"], strategies, **options), [*TOY, *overrides], out)


def test_runs_go_cell_by_cell(tmp_path):
    runs = planned(tmp_path, strategies="fedmr,fedavg", seeds="0,1", grid=["training.lr=0.1,0.2"])
    assert [run.name for run in runs[:3]] == [
        "lr=0.1: fedmr, seed 0",
        "lr=0.1: fedmr, seed 1",
        "lr=0.1: fedavg, seed 0",
    ]
    assert len(runs) == 8
    assert runs[-1].settings.training.lr == 0.2
    assert runs[-1].settings.run_dir == tmp_path / "lr=0.2" / "fedavg-seed1"


def test_a_single_cell_has_no_folder(tmp_path):
    (run,) = planned(tmp_path)
    assert run.settings.run_dir == tmp_path / "fedavg-seed0"


@pytest.mark.parametrize(
    "options",
    [
        {"grid": ["training.lr=0.1,0.10"]},
        {"strategies": "fedprox/mu=0.1,fedprox/mu=1e-1"},
        {"strategies": "fedavg,fedavg/weighting=examples"},
        {"grid": ["training.lr=0.1,0.2"], "strategies": "fedmr/training.lr=0.3"},
        {"grid": ["partition={name: iid},{name: iid, test-fraction: 0}"]},
        {"grid": ["engine=ray,in-process"]},
        {"strategies": "fedmr/unit=['a'],fedmr/unit=[\"a\"]"},
    ],
    ids=str,
)
def test_cells_of_the_same_meaning_are_refused(tmp_path, options):
    with pytest.raises(ConfigError, match="' and '.*' are the same run; leave one of them out"):
        planned(tmp_path, **options)


def test_runs_on_validation_and_on_test_examples_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="data.validation: some runs would be scored on it and others on the test"):
        planned(tmp_path, grid=["data.validation=0,0.1"])


def test_override_of_a_grids_key_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="'partition.alpha=1': partition is in the grid of this comparison"):
        planned(tmp_path, "partition.alpha=1", grid=["partition={name: iid},{name: dirichlet}"])


@pytest.mark.parametrize(
    "change",
    [
        "wire=float16", "guard=5", "min-good-replies=2", "data.normalisation=none", "evaluate-every=2", "rounds=5",
        "training.lr=0.2", "max-bad-rounds=1", "data.train-examples=100",
    ],
)  # fmt: skip
def test_runs_with_another_result_are_refused(tmp_path, change):
    (run,) = planned(tmp_path)
    create_folder(run.settings)
    key = change.split("=")[0]
    with pytest.raises(RunFolderError, match=f"fedavg-seed0 was started with {key} = .*, but now it is .*--out"):
        planned(tmp_path, change)


@pytest.mark.parametrize("change", ["evaluation.classes=end", "evaluation.train=2", "evaluation.forgetting=true"])
def test_runs_without_a_wanted_evaluation_are_refused(tmp_path, change):
    (run,) = planned(tmp_path)
    create_folder(run.settings)
    key = change.split("=")[0]
    with pytest.raises(RunFolderError, match=f"fedavg-seed0 was started with {key} = .*, but now it is .*--out"):
        planned(tmp_path, change)


def test_runs_with_more_evaluations_are_used(tmp_path):
    (run,) = planned(tmp_path, "evaluation.classes=end", "evaluation.train=2")
    create_folder(run.settings)
    planned(tmp_path, "evaluation.train=2")


def test_local_privacy_makes_another_run(tmp_path):
    (run,) = planned(tmp_path)
    create_folder(run.settings)
    values = {"clipping-norm": 1, "sensitivity": 2, "epsilon": 1, "delta": 1e-5}
    with pytest.raises(RunFolderError, match=r"was started with privacy.local-dp = None"):
        planned(tmp_path, *(f"privacy.local-dp.{key}={value}" for key, value in values.items()))


@pytest.mark.parametrize(
    "change",
    ["engine=in-process", "client-cpus=2", "checkpoint-every=1", "ray.client-gpus=0.5", "keep-models=[1]",
     "data.download=true"],
)  # fmt: skip
def test_runs_computed_otherwise_are_used(tmp_path, change):
    (run,) = planned(tmp_path)
    create_folder(run.settings)
    planned(tmp_path, change)


def test_runs_on_other_data_are_refused(tmp_path):
    (run,) = planned(tmp_path)
    create_folder(run.settings).note(**{"data-sha256": "0" * 64})
    with pytest.raises(RunFolderError, match="fedavg-seed0 was started with data-sha256 = 000"):
        planned(tmp_path)


def test_partition_file_is_known_by_its_contents(tmp_path):
    path = tmp_path / "partition.json"

    def write(shift):
        parts = np.array_split(np.roll(np.arange(1438), shift), 6)
        path.write_text(json.dumps({"train_data": {str(at): part.tolist() for at, part in enumerate(parts)}}))

    def compare():
        return planned(tmp_path / "out", f"partition.name=file:{path}")

    write(0)
    (run,) = compare()
    settings = run.settings
    dataset = datasets.load(settings.data, None, 0)
    parts = partitions.split(dataset, 6, settings.partition, 0)
    known = {"data-sha256": dataset.digest(), "partition-sha256": partition_files.sha256(parts)}
    create_folder(settings).note(**known)
    compare()
    write(1)
    earlier._digests.cache_clear()  # as in another process
    with pytest.raises(RunFolderError, match="was started with partition-sha256 = "):
        compare()


def test_changed_model_of_ones_own_is_refused(tmp_path, monkeypatch):
    module = tmp_path / "mine_of_compare.py"
    module.write_text("from fedmr_flwr.models.mlp import *\n")
    monkeypatch.syspath_prepend(tmp_path)
    (run,) = planned(tmp_path / "out", "model.name=mine_of_compare:MLP")
    create_folder(run.settings).note(**{"own-code": own_code(run.settings)})
    planned(tmp_path / "out", "model.name=mine_of_compare:MLP")
    module.write_text("from fedmr_flwr.models.mlp import *\n# another one\n")
    with pytest.raises(RunFolderError, match="was started with own-code.mine_of_compare = "):
        planned(tmp_path / "out", "model.name=mine_of_compare:MLP")


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / "fedmr-seed0").mkdir(parents=True)
    (tmp_path / "fedmr-seed0" / "mine.txt").write_text("")
    with pytest.raises(RunFolderError, match="fedmr-seed0 is not empty; choose another folder with --out"):
        planned(tmp_path, strategies="fedavg,fedmr")
