"""What a run measures besides the accuracy on the test set, and when."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score

from fedmr_flwr import models
from fedmr_flwr.config.evaluation import is_due
from fedmr_flwr.config.settings import Data
from fedmr_flwr.data import datasets
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.launch import engines
from fedmr_flwr.report import scores
from fedmr_flwr.report.display import Display
from fedmr_flwr.server.run import run as serve
from fedmr_flwr.training.evaluation import evaluate


def run(settings, prepared=None):
    with Display(settings.rounds, Console(file=io.StringIO())) as display:
        return serve(settings, engines.grid_of(settings), display, prepared)


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


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("evaluation.train=0", "'evaluation.train=0': write a number of rounds, end or never"),
        ("evaluation.classes=sometimes", "write a number of rounds, end or never"),
        ("evaluation.clients=true", "must not be true or false"),
        ("evaluation.clients=1.5", "write a number of rounds, end or never"),
        ("evaluation.client=end", "unknown key 'evaluation.client'; did you mean 'evaluation.clients'"),
        ("evaluation.fine-tune=5", "evaluation.fine-tune needs evaluation.clients"),
        ("evaluation.fine-tune=0", "greater than or equal to 1"),
    ],
)
def test_wrong_evaluations_are_one_line(toy, wrong, words):
    with pytest.raises(ConfigError, match=words) as caught:
        toy(wrong)
    assert "\n" not in str(caught.value)
