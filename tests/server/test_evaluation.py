"""What a run measures besides the accuracy on the test set, and when."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score

from fedmr_flwr import models
from fedmr_flwr.config.data import Data
from fedmr_flwr.config.evaluation import is_due
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.data import datasets, partitions
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.gpu.grid import GpuGrid
from fedmr_flwr.report import scores
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server.evaluation import Evaluator
from fedmr_flwr.server.experiment import Experiment
from fedmr_flwr.training.devices import place
from fedmr_flwr.training.evaluation import evaluate
from fedmr_flwr.training.sgd import fit
from tests.support.recorder import RecordedLane
from tests.support.runs import run

CPU = torch.device("cpu")


def final(out):
    """The data set and the final model of a run."""
    data = datasets.load(Data(), None)
    model = models.build("cnn", data.input_shape, 10)
    model.load_state_dict(load_file(out.model))
    return data, model


@pytest.mark.parametrize(
    ("often", "rounds"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5]), ("end", [5]), ("never", [])]
)
def test_due_rounds(often, rounds):
    assert [number for number in range(1, 6) if is_due(often, number, 5)] == rounds


def test_validation_never_sees_the_test_set(toy, tmp_path):
    rng = np.random.default_rng(0)
    own = {"x_train": rng.integers(0, 256, (200, 8, 8), dtype=np.uint8), "y_train": np.arange(200) % 4}
    runs = []
    for name in ("a", "b"):  # equal, but for their test parts
        tests = {"x_test": rng.integers(0, 256, (30, 8, 8), dtype=np.uint8), "y_test": rng.integers(0, 4, 30)}
        np.savez(tmp_path / f"{name}.npz", **own, **tests)
        path = f"data.name=npz:{tmp_path / name}.npz"
        runs.append(run(toy(path, "data.validation=0.2", "evaluation.classes=end", run=name)))
    (first, second), manifests = ([own.read_rows() for own in runs], [own.read_manifest() for own in runs])
    for row, same in zip(first, second, strict=True):
        assert {**row, "seconds": 0, "evaluation-seconds": 0} == {**same, "seconds": 0, "evaluation-seconds": 0}
        assert "validation-accuracy" in row and "test-accuracy" not in row
    assert manifests[0]["data-sha256"] == manifests[1]["data-sha256"]
    assert runs[0].classes.read_text() == runs[1].classes.read_text()


def test_scores_the_training_set(toy):
    out = run(toy("evaluation.train=2", "evaluate-every=3"))
    rows = out.read_rows()
    assert ["training-set-loss" in row for row in rows] == [False, True, True]
    assert ["test-loss" in row for row in rows] == [False, False, True]
    data, model = final(out)
    expected = evaluate(model, data, data.train, torch.device("cpu"))
    found = rows[-1]["training-set-loss"], rows[-1]["training-set-accuracy"]
    assert found == pytest.approx((expected.loss, expected.accuracy), rel=1e-5)


def test_scores_each_class(toy):
    out = run(toy("evaluation.classes=end"))
    rows = out.read_rows()
    assert ["macro-f1" in row for row in rows] == [False, False, True]
    data, model = final(out)
    with torch.no_grad():
        predicted = model.eval()(data.prepare(data.test.inputs)).argmax(1)
    assert rows[-1]["macro-f1"] == pytest.approx(f1_score(data.test.labels, predicted, average="macro"))
    content = json.loads(out.classes.read_text())
    assert content["round"] == 3
    counts = np.array(content["confusion"])
    assert counts.trace() / counts.sum() == pytest.approx(accuracy_score(data.test.labels, predicted))
    (picture,) = scores.draw(out)
    assert picture.name == "confusion.png" and picture.stat().st_size > 0


def test_nothing_more_by_default(toy):
    out = run(toy())
    assert not out.classes.exists()
    assert not {"training-set-loss", "macro-f1"} & out.read_rows()[-1].keys()


TESTED = ("partition.test-fraction=0.25", "evaluation.clients=2", "evaluation.fine-tune=4")


def expected_scores(settings, out, steps):
    """What the clients' scores of the final model are, computed here."""
    data, _ = final(out)
    parts = partitions.split(data, settings.clients, settings.partition, settings.seed)
    tests = partitions.client_tests(data, parts, settings.partition, settings.seed)
    for client, (part, held) in enumerate(zip(parts, tests, strict=True)):
        _, model = final(out)
        place(model, CPU)
        own = data.train.select(held, CPU)
        before = evaluate(model, data, own, CPU)
        training = settings.training.model_copy(update={"local_steps": steps, "local_epochs": None})
        rng = stream(settings.seed, "fine-tune", settings.rounds, client)
        fit(model, data, data.train.select(part, CPU), training, rng)
        yield before, evaluate(model, data, own, CPU)


def test_clients_score_and_fine_tune(toy):
    settings = toy(*TESTED)
    out = run(settings)
    rows, of_clients = out.read_rows(), out.read_client_rows()
    assert ["client-accuracy" in row for row in rows] == [False, True, True]
    assert [(row["round"], row["client"]) for row in of_clients] == [(n, c) for n in (2, 3) for c in range(6)]
    for row, (before, after) in zip(of_clients[6:], expected_scores(settings, out, 4), strict=True):
        assert (row["accuracy"], row["num-examples"], row["own-tests"]) == (before.accuracy, before.examples, 1)
        assert (row["tuned-accuracy"], row["tuned-loss"]) == (after.accuracy, pytest.approx(after.loss))
    assert rows[-1]["client-accuracy"]["mean"] == pytest.approx(np.mean([row["accuracy"] for row in of_clients[6:]]))
    assert out.read_manifest()["tuned-accuracy"] == rows[-1]["tuned-accuracy"]
    assert "client-tests-sha256" in out.read_manifest()
    (picture,) = scores.draw(out)
    assert picture.name == "client-accuracy.png"


@pytest.mark.parametrize("fraction", [0.25, 0.0])
def test_server_knows_on_how_many_examples_clients_score(toy, fraction):
    settings = toy("rounds=1", "evaluation.clients=1", f"partition.test-fraction={fraction}")
    out = run(settings)
    evaluator = Evaluator(Experiment(settings), out, None, None)
    assert evaluator._sizes == [row["num-examples"] for row in out.read_client_rows()]


def test_slots_models_are_scored_by_clients(toy):
    out = run(toy(*TESTED, "strategy.evaluate-slots=true"))
    row, of_clients = out.read_rows()[-1], out.read_client_rows()[-6:]
    assert {each["model"] for each in of_clients} == {"slot"}
    assert row["slot-client-accuracy"]["mean"] == pytest.approx(np.mean([each["accuracy"] for each in of_clients]))
    assert row["slot-tuned-accuracy"]["clients"] == 6


@pytest.mark.slow
def test_clients_measure_around_training(toy):
    options = ("evaluation.forgetting=true", "partition.test-fraction=0.25", "training.work=stragglers:0.5")
    options += ("training.local-epochs=2",)
    plain = run(toy(*options[1:], run="plain"))
    settings = [toy(*options, run=name) for name in ("a", "b")]
    out = run(settings[0])
    rows = out.read_rows()
    assert out.read_manifest()["model-sha256"] == plain.read_manifest()["model-sha256"]
    assert sorted(each["client"] for each in rows[0]["around-training"]) == sorted(rows[0]["clients"])
    data = datasets.load(Data(), None)
    parts = partitions.split(data, 6, settings[0].partition, settings[0].seed)
    tests = partitions.client_tests(data, parts, settings[0].partition, settings[0].seed)
    model = models.build("cnn", data.input_shape, 10, settings[0].seed)
    place(model, CPU)
    for each in rows[0]["around-training"]:
        fresh = evaluate(model, data, data.train.select(tests[each["client"]], CPU), CPU)
        assert (each["before-accuracy"], each["before-loss"]) == (fresh.accuracy, pytest.approx(fresh.loss))
        assert each["after-loss"] != each["before-loss"]
    weights = [len(parts[each["client"]]) for each in rows[0]["around-training"]]
    after = [each["after-accuracy"] for each in rows[0]["around-training"]]
    assert rows[0]["after-accuracy"] == pytest.approx(np.average(after, weights=weights))
    gpu = run(settings[1], grid=GpuGrid(settings[1], device=CPU, lane=RecordedLane))
    assert [row["around-training"] for row in gpu.read_rows()] == [row["around-training"] for row in rows]


def test_evaluation_does_not_change_the_model(toy):
    plain = run(toy("partition.test-fraction=0.25", run="plain"))
    assert not plain.client_rows.exists()
    scored = run(toy(*TESTED, "evaluation.train=1", "evaluation.classes=1", run="scored"))
    assert plain.read_manifest()["model-sha256"] == scored.read_manifest()["model-sha256"]


def test_gpu_engine_scores_the_same(toy):
    settings = [toy(*TESTED, run=name) for name in ("a", "b")]
    expected = run(settings[0]).read_client_rows()
    out = run(settings[1], grid=GpuGrid(settings[1], device=CPU, lane=RecordedLane))
    assert out.read_client_rows() == expected


@pytest.mark.slow
def test_resumed_run_scores_each_round_once(toy, monkeypatch):
    whole, settings = (
        run(toy(*TESTED, "rounds=5", "checkpoint-every=1", run="whole")),
        toy(*TESTED, "rounds=5", "checkpoint-every=3", run="cut"),
    )
    add = RunFolder.add_client_rows

    def stop(self, rows):
        add(self, rows)
        if self.read_client_rows()[-1]["round"] == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "add_client_rows", stop)
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    monkeypatch.setattr(RunFolder, "add_client_rows", add)
    out = run(settings, RunFolder(settings.run_dir))
    assert out.read_client_rows() == whole.read_client_rows()


def test_fine_tuning_needs_tests(toy):
    with pytest.raises(
        ConfigError, match="evaluation.fine-tune: the clients have no test examples of their own; set"
    ):
        run(toy("evaluation.clients=end", "evaluation.fine-tune=5"))


def test_clients_without_tests_do_not_fine_tune(toy, tmp_path):
    """They are scored as without fine-tuning, and do not disappear from the summaries."""
    images = np.random.default_rng(0).integers(0, 256, (36, 8, 8), dtype=np.uint8)
    train = {"x_train": images[:30], "y_train": np.arange(30) % 10, "owners": np.arange(30) // 10}
    test = {"x_test": images[30:], "y_test": np.arange(6), "owners_test": np.arange(6) // 3}
    np.savez(tmp_path / "written.npz", **train, **test)
    natural = (f"data.name=npz:{tmp_path / 'written.npz'}", "partition.name=natural", "clients=3")
    out = run(toy(*natural, "evaluation.clients=end", "evaluation.fine-tune=2"))
    row, of_clients = out.read_rows()[-1], out.read_client_rows()
    assert [(each["own-tests"], each["num-examples"]) for each in of_clients] == [(1, 3), (1, 3), (0, 10)]
    assert ["tuned-accuracy" in each for each in of_clients] == [True, True, False]
    assert (row["client-accuracy"]["clients"], row["tuned-accuracy"]["clients"]) == (3, 2)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("evaluation.train=0", "'evaluation.train=0': write a number of rounds, end or never"),
        ("evaluation.classes=sometimes", "write a number of rounds, end or never"),
        ("evaluation.clients=true", "must not be true or false"),
        ("evaluation.clients=1.5", "write a number of rounds, end or never"),
        ("evaluation.client=end", "unknown key 'evaluation.client'; did you mean 'evaluation.clients'"),
        ("partition.test-fraction=1", "less than 1"),
        ("evaluation.fine-tune=5", "'evaluation.fine-tune=5': it needs evaluation.clients"),
        ("evaluation.fine-tune=0", "greater than or equal to 1"),
    ],
)
def test_wrong_evaluations_are_one_line(toy, wrong, words):
    with pytest.raises(ConfigError, match=words) as caught:
        toy(wrong)
    assert "\n" not in str(caught.value)
