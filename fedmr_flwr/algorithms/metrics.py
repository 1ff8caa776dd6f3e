"""The metrics that clients return, averaged."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Metric = float | list[float]

_log = logging.getLogger(__name__)


def plain_numbers(metrics: Mapping[str, Any]) -> dict[str, Metric]:
    """Return the metrics that are numbers of at most 64 bits, or lists of such."""
    return {
        name: [float(item) for item in value] if isinstance(value, list) else float(value)
        for name, value in metrics.items()
        if all(map(_is_plain, value if isinstance(value, list) else [value]))
    }


def mean_metrics(replies: Iterable[tuple[float, Mapping[str, Metric]]]) -> dict[str, Metric]:
    """Average metrics over the clients that returned them; lists item by item.

    Args:
        replies: the weight of each client, and its metrics by name.
    """
    found: dict[str, list[tuple[float, Metric]]] = {}
    for weight, metrics in replies:
        for name, value in metrics.items():
            found.setdefault(name, []).append((weight, value))
    return {name: _mean(found[name]) for name in sorted(found) if _is_alike(name, found[name])}


def _mean(values: list[tuple[float, Metric]]) -> Metric:
    weights = np.array([weight for weight, _ in values])
    with np.errstate(all="ignore"):  # a client may send any number, infinite ones included
        mean: Metric = (weights @ np.array([value for _, value in values]) / weights.sum()).tolist()
    return mean


def _is_alike(name: str, values: list[tuple[float, Metric]]) -> bool:
    """Return whether all values of a metric have one shape; those of other metrics have no mean."""
    if len({np.shape(value) for _, value in values}) == 1:
        return True
    _log.warning("metric '%s': left out, because clients return lists of different lengths", name)
    return False


def _is_plain(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
