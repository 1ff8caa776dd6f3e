"""The flatness of real runs, and the command that measures it."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console
from safetensors.numpy import load_file

from fedmr_flwr import load_run
from fedmr_flwr.analysis.flatness.measure import Flatness
from fedmr_flwr.config.loading import load
from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.launch import engines
from fedmr_flwr.report.display import Display

CONF = Path(__file__).parents[3] / "conf"
LOCAL = ["engine=in-process", "device=cpu"]
CPU = torch.device("cpu")


def train(settings):
    return engines.run(settings, Display(settings.rounds, Console(file=io.StringIO()))).path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folders of a run of FedMR and one of FedAvg, of two rounds, with all models."""
    folder = tmp_path_factory.mktemp("runs")
    few = ["rounds=2", "clients=6", "clients-per-round=3", "model.name=mlp", "data.train-examples=300"]
    kept = ["keep-models=every 1", "keep-models-slots=true", *LOCAL]
    return [
        train(load(CONF / "quickstart.yaml", [*few, *kept], [f"strategy.name={name}", f"run-dir={folder / name}"]))
        for name in ("fedmr", "fedavg")
    ]


def flatness(path, examples=100):
    return Flatness(load_run(path), examples, CPU, lambda line: None)


@pytest.mark.slow
def test_every_slot_and_client_is_measured(runs):
    found = flatness(runs[0]).measure(None, slots=True, clients=2)
    assert len(found["slots"]) == 3
    assert len({own["client"] for own in found["clients"]}) == 2
    for own in (found["global"], *found["slots"], *found["clients"]):
        assert own["eigenvalues"] == sorted(own["eigenvalues"], reverse=True)
        assert own["ratio"] == own["eigenvalues"][0] / own["eigenvalues"][4]
        assert own["loss"] > 0 < own["sharpness"]
    assert len(found["lines"]["between-slots"]["losses"]) == len(found["accuracy"]["slots"]) == 3


@pytest.mark.slow
def test_the_loss_is_that_on_examples_which_clients_train_on(runs):
    results = load_run(runs[1])
    results.parts = results.parts[:2]  # as if the others were kept for testing
    measured = Flatness(results, 1000, CPU, lambda line: None).measure(None, slots=False, clients=0)
    assert measured["examples"] == sum(map(len, results.parts)) < 300


def test_lines_end_at_their_models(runs):
    lines = flatness(runs[0]).measure(None, slots=False, clients=0)["lines"]
    starts = [losses[0] for losses in lines["between-slots"]["losses"]]
    ends = [losses[-1] for losses in lines["between-slots"]["losses"]]
    assert ends == pytest.approx([*starts[1:], starts[0]])
    assert len({round(losses[-1], 6) for losses in lines["slot-to-global"]["losses"]}) == 1


def test_a_second_measurement_is_the_same(runs):
    one, other = (flatness(runs[1]).measure(None, slots=False, clients=1) for _ in range(2))
    assert one == other


def test_the_accuracy_is_that_of_the_run(runs):
    found = flatness(runs[0]).measure(None, slots=False, clients=0)
    assert found["accuracy"]["global"] == load_run(runs[0]).metrics["test-accuracy"].iloc[-1]


def test_an_earlier_round_is_another_model(runs):
    first, last = (flatness(runs[1]).measure(number, slots=False, clients=0)["global"] for number in (1, None))
    assert first["loss"] > last["loss"]


def test_an_algorithm_without_slots_has_none_to_measure(runs):
    assert "lines" not in flatness(runs[1]).measure(None, slots=False, clients=0)
    with pytest.raises(RunFolderError, match="has no slots' models of that round"):
        flatness(runs[1]).measure(None, slots=True, clients=0)


def test_more_clients_than_there_are_is_an_error(runs):
    with pytest.raises(RunFolderError, match="--clients is 7, but the run knows the examples of 6 clients"):
        flatness(runs[1]).measure(None, slots=False, clients=7)


def test_a_round_that_was_not_kept_is_an_error(runs):
    with pytest.raises(RunFolderError, match="rounds whose model was kept: 1, 2; choose them with keep-models"):
        flatness(runs[1]).measure(5, slots=False, clients=0)


def test_a_surface_goes_through_the_slots(runs):
    found = flatness(runs[0]).surface(None)
    results = load_run(runs[0])
    for place, model in zip(found.places["slots"], results.packed_population(), strict=True):
        assert found.x[0] < place[0] < found.x[-1]
        assert found.y[0] < place[1] < found.y[-1]
        assert np.isfinite(model.floats).all()
    assert found.places["global model"][0] == pytest.approx([0, 0], abs=1e-5), "the mean is the plane's origin"
    assert np.isfinite(found.losses).all()


def test_paths_begin_at_the_common_initial_model(runs):
    found = flatness(runs[0]).paths(load_run(runs[1]))
    assert found.paths
    assert {name: len(places) for name, places in found.places.items()} == {"fedmr": 3, "fedavg": 3}
    assert found.places["fedmr"][0] == pytest.approx(found.places["fedavg"][0])


def test_results_have_metrics_config_and_models(runs):
    results = load_run(runs[0])
    assert list(results.metrics.index) == [1, 2]
    assert results.config.strategy.name == "fedmr"
    final = load_file(runs[0] / "model.safetensors")
    assert all(np.array_equal(value, final[name]) for name, value in results.model().state_dict().items())
    assert len(results.population()) == len(results.population(1)) == 3
    assert results.rounds == [1, 2]


def test_the_population_of_a_kept_round_is_that_of_the_checkpoint(runs):
    results = load_run(runs[0])
    for kept, saved in zip(results.packed_population(2), results.packed_population(), strict=True):
        assert np.array_equal(kept.floats, saved.floats)


def test_a_model_of_another_run_is_refused(runs, tmp_path):
    (folder := tmp_path / "copy").mkdir()
    for name in ("config.yaml", "manifest.json"):
        (folder / name).write_bytes((runs[0] / name).read_bytes())
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunFolderError, match="is not a model of this run"):
        load_run(folder).model()


def call(fedmr, *arguments):
    status, out, err = fedmr("flatness", *map(str, arguments), "--examples", "50", "--device", "cpu")
    assert status == 0, err
    assert err.startswith("reading the data\n") and len(err.splitlines()) > 1, "a line for each step"
    return out


@pytest.mark.slow
def test_the_command_writes_numbers_and_pictures(fedmr, runs):
    out = call(fedmr, runs[0], "--surface", "--round", 1)
    assert "λ1/λ5" in out
    assert list(json.loads((runs[0] / "flatness.json").read_text())) == ["1"]
    for name in ("flatness-000001.png", "surface-000001.png"):
        assert imread(runs[0] / name).std() > 0
    call(fedmr, runs[0])
    assert list(json.loads((runs[0] / "flatness.json").read_text())) == ["1", "2"]


@pytest.mark.slow
def test_the_command_draws_the_paths_of_two_runs(fedmr, runs):
    out = call(fedmr, runs[0], runs[1], "--paths")
    assert out.splitlines()[-1] == str(runs[0] / "paths.png")
    assert imread(runs[0] / "paths.png").std() > 0


def test_paths_need_a_second_run(fedmr, runs):
    status, _, err = fedmr("flatness", str(runs[0]), "--paths")
    assert (status, err) == (1, "fedmr: error: --paths compares two runs: fedmr flatness RUN OTHER --paths\n")
    status, _, err = fedmr("flatness", str(runs[0]), str(runs[1]), "--paths", "--slots")
    assert status == 1 and "--paths draws both runs and measures neither; leave out --round, --slots" in err
