"""The numbers that clients send beside their models, and how far they are believed."""

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from flwr.app import MetricRecord

# No honest metric is larger; the bound also keeps sums and squares of metrics finite.
LARGEST = 1e15
# Of one reply: metrics, numbers in all of them, and characters of a name.
_MOST_METRICS, _MOST_NUMBERS, _LONGEST_NAME = 100, 1000, 100
# Here, and in Flower's templates.
_LOSSES = ("train-loss", "train_loss")
# An honest loss may be far above the others' (a client with new classes), but not as far as this.
_LOSS_FACTOR = 1000.0
# How many times the median number of examples may count.
_EXAMPLES_FACTOR = 10


def find_metric_problem(metrics: Mapping[str, Any]) -> tuple[str, str] | None:
    """Check a reply's metrics: how many, how named, how large.

    Returns:
        The kind and the reason of a failure; None for good ones.
    """
    if len(metrics) > _MOST_METRICS:
        return "malformed", f"the reply has {len(metrics)} metrics; at most {_MOST_METRICS} are accepted"
    count = 0
    for name, value in metrics.items():
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            return "malformed", f"a metric's name is not one of at most {_LONGEST_NAME} printable characters"
        values = value if isinstance(value, list) else [value]
        count += len(values)
        if count > _MOST_NUMBERS:
            return "malformed", f"the metrics have more than {_MOST_NUMBERS} numbers, the last ones in '{name}'"
        for number in values:
            if isinstance(number, float) and not math.isfinite(number):
                return "not-finite", f"its metric '{name}' is {number}"
            if abs(number) >= LARGEST:
                return "malformed", f"its metric '{name}' is beyond {LARGEST:g}"  # perhaps beyond any float, too
    return None


def implausible_losses(replies: Mapping[int, MetricRecord]) -> dict[int, str]:
    """Return the clients whose training loss is far above the round's median, with the reason.

    The loss is averaged, and some strategies weigh models by it.

    Args:
        replies: the metrics of each client.
    """
    found: dict[int, str] = {}
    for name in _LOSSES:
        losses = {
            client: float(loss)
            for client, metrics in replies.items()
            if isinstance(loss := metrics.get(name), int | float)
        }
        if not losses:
            continue
        # One list among numbers would leave the round without a mean.
        lists = {client for client, metrics in replies.items() if isinstance(metrics.get(name), list)}
        found |= dict.fromkeys(sorted(lists), f"its '{name}' is a list, and others' are numbers")
        # The median, because fewer than half of the clients cannot move it; at least 1, because it may be near zero.
        usual = median(map(abs, losses.values()))
        for client, loss in losses.items():
            if abs(loss) > _LOSS_FACTOR * max(1.0, usual):
                found[client] = f"its '{name}' is {loss:.3g}; the round's median is {usual:.3g}"
    return found


def counted_examples(stated: Mapping[int, int]) -> dict[int, int]:
    """Return how many examples count of each client, where nobody can verify what it states.

    At most ten times the median: a client could otherwise take over each mean that is weighted by examples.

    Args:
        stated: the number of examples that each client states.
    """
    if not stated:
        return {}
    # Of two in the middle the lower one: of two clients, the one that states less sets the bound.
    most = _EXAMPLES_FACTOR * sorted(stated.values())[(len(stated) - 1) // 2]
    return {client: min(count, most) for client, count in stated.items()}
