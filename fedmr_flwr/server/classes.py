"""A model's quality on each class, by scikit-learn."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import classification_report, confusion_matrix, top_k_accuracy_score

_TOP = 5


def class_scores(labels: NDArray[np.int64], logits: NDArray[np.float32]) -> dict[str, Any]:
    """Score predictions on each class.

    Args:
        labels: [N], the true ones.
        logits: [N, classes].

    Returns:
        macro-f1 and balanced-accuracy (the mean recall of the classes that occur); with more than ten classes top-5;
        classes: precision, recall, f1-score and support of each label; confusion: [classes, classes], the examples
        of each label (row) by prediction (column).
    """
    classes = logits.shape[1]
    predicted = logits.argmax(1)
    report = classification_report(labels, predicted, output_dict=True, zero_division=0)
    each = {int(label): scores for label, scores in report.items() if label.isdigit()}
    found = {
        "macro-f1": float(report["macro avg"]["f1-score"]),
        # Not sklearn's own function, which warns of predicted classes that do not occur.
        "balanced-accuracy": float(np.mean([scores["recall"] for scores in each.values() if scores["support"]])),
    }
    if classes > 2 * _TOP:
        # Those of a model that has diverged, which scikit-learn refuses; the run itself says so.
        finite = np.nan_to_num(logits)
        found["top-5"] = float(top_k_accuracy_score(labels, finite, k=_TOP, labels=np.arange(classes)))
    matrix = confusion_matrix(labels, predicted, labels=np.arange(classes))
    return {**found, "classes": each, "confusion": matrix.tolist()}
