"""The metrics that clients return with their models."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fedmr_flwr.algorithms.contract import Reply


def plain_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that are single numbers of at most 64 bits."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
    }


def mean_metrics(replies: Iterable[Reply]) -> dict[str, float]:
    """Average the metrics that all clients returned, weighted by their examples."""
    trained = list(replies)
    weights = np.array([reply.examples for reply in trained])
    # Only metrics of all clients: the mean of a subset would not be comparable between rounds.
    names = sorted(set.intersection(*(set(reply.metrics) for reply in trained)))
    with np.errstate(all="ignore"):  # a client may send any number, infinite ones included
        return {
            name: float(np.array([reply.metrics[name] for reply in trained]) @ weights / weights.sum())
            for name in names
        }
