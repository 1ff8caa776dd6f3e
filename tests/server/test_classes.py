"""Scores of each class, compared with scikit-learn's, and by hand."""

import numpy as np
import pytest
from sklearn import metrics

from fedmr_flwr.server.classes import class_scores

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("classes", [3, 12])
def test_equal_to_scikit_learns_report(classes):
    labels, logits = RNG.integers(0, classes, 400), RNG.normal(size=(400, classes)).astype(np.float32)
    logits[np.arange(400), labels] += 1
    found, predicted = class_scores(labels, logits), logits.argmax(1)
    report = metrics.classification_report(labels, predicted, output_dict=True)
    assert found["classes"] == {label: report[str(label)] for label in range(classes)}
    assert found["macro-f1"] == report["macro avg"]["f1-score"]
    assert found["balanced-accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert found["confusion"] == metrics.confusion_matrix(labels, predicted).tolist()
    assert ("top-5" in found) == (classes == 12)


def test_scores_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 3])
    logits = np.eye(12, dtype=np.float32)[[0, 0, 1, 1, 1, 5]]
    found = class_scores(labels, logits)
    assert found["classes"][0]["recall"] == pytest.approx(2 / 3) and found["classes"][1]["precision"] == 2 / 3
    assert found["classes"][3]["recall"] == 0 and found["classes"][5]["support"] == 0
    assert found["balanced-accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3), "of the classes that occur"
    assert found["confusion"][3][5] == 1 and sum(map(sum, found["confusion"])) == 6


def test_top_five_by_hand():
    order = np.tile(np.arange(12, dtype=np.float32), (4, 1))  # 11 is the most likely, then 10, 9, 8 and 7
    assert class_scores(np.array([11, 7, 6, 0]), order)["top-5"] == 0.5


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_has_diverged_is_scored(value):
    logits = np.full((4, 12), value, np.float32)
    assert class_scores(np.array([0, 1, 2, 3]), logits)["classes"][0]["recall"] == 1, "the first class is predicted"
