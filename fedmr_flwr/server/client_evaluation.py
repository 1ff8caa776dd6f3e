"""The evaluation of models on each client's own data."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict

from fedmr_flwr.wire.grids.roster import RosterGrid
from fedmr_flwr.wire.messages import ARRAYS, CONFIG, EXAMPLES, METRICS, OWN_TESTS
from fedmr_flwr.wire.numbers import LARGEST, counted_examples

# By name, what a client measured: its accuracies are from 0 to 1.
Scores = Mapping[str, float]

_ACCURACIES, _LOSSES = ("accuracy", "tuned-accuracy"), ("loss", "tuned-loss")


def ask(
    grid: RosterGrid,
    nodes: Sequence[int],
    model_of: Callable[[int], ArrayRecord],
    config: ConfigRecord,
    at_once: int,
    timeout: float,
) -> list[Scores | None]:
    """Let nodes score a model on their own examples.

    Args:
        grid: sends the messages.
        nodes: in the order of their clients' numbers.
        model_of: returns the model for a client.
        config: sent with the model.
        at_once: the number of clients at a time; each gets the whole model.
        timeout: seconds to wait for them.

    Returns:
        For each client, in the order of their numbers, what it measured; None for one without a usable reply.
    """
    found: list[Scores | None] = []
    # In portions: messages to all clients at once would need memory for as many models.
    for start in range(0, len(nodes), at_once):
        messages = [
            Message(RecordDict({ARRAYS: model_of(client), CONFIG: config}), nodes[client], MessageType.EVALUATE)
            for client in range(start, min(start + at_once, len(nodes)))
        ]
        replies = grid.send_and_receive(messages, timeout=timeout)
        by_message = {reply.metadata.reply_to_message_id: reply for reply in replies}
        found += [_scores(by_message.get(message.metadata.message_id)) for message in messages]
    return found


def _scores(reply: Message | None) -> Scores | None:
    metrics = reply.content.get(METRICS) if reply and reply.has_content() else None
    if not isinstance(metrics, MetricRecord):
        return None
    # A client may report anything, NaN and integers beyond any float included; the comparisons are false for them.
    numbers = {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and abs(value) < LARGEST
    }
    accuracies = [numbers[name] for name in _ACCURACIES if name in numbers]
    good = "accuracy" in numbers and all(0 <= value <= 1 for value in accuracies)
    if not good or not 1 <= numbers.get(EXAMPLES, 0) < LARGEST:
        return None
    known: dict[str, float] = {EXAMPLES: int(numbers[EXAMPLES]), OWN_TESTS: int(numbers.get(OWN_TESTS, 0) != 0)}
    known |= {name: numbers[name] for name in _ACCURACIES if name in numbers}
    return known | {name: numbers[name] for name in _LOSSES if math.isfinite(numbers.get(name, math.nan))}


def limited(scores: Sequence[Scores | None]) -> list[Scores | None]:
    """Limit the numbers of examples that clients state and nobody can verify, see `counted_examples`."""
    counted = counted_examples({at: int(each[EXAMPLES]) for at, each in enumerate(scores) if each is not None})
    return [None if each is None else {**each, EXAMPLES: counted[at]} for at, each in enumerate(scores)]


def verified(scores: Sequence[Scores | None], sizes: Sequence[int]) -> list[Scores | None]:
    """Return what was measured on as many examples as each client has, None for the others."""
    return [
        each if each is not None and each[EXAMPLES] == size else None
        for each, size in zip(scores, sizes, strict=True)
    ]


def summary(scores: Sequence[Scores | None], name: str = "accuracy") -> dict[str, Any]:
    """Summarise what clients measured.

    Args:
        scores: of each client; None for those without a reply.
        name: of the number.

    Returns:
        clients (those that replied), own-tests (those with test examples of their own), mean, std (the standard
        deviation over clients) and worst-tenth (the mean of the tenth of the clients, rounded up, with the lowest
        values); the same with "weighted-" before them, every client weighted by its examples.
    """
    known = [each for each in scores if each is not None and name in each]
    found: dict[str, Any] = {"clients": len(known), "own-tests": int(sum(each.get(OWN_TESTS, 0) for each in known))}
    if not known:
        return found
    known.sort(key=lambda each: each[name])
    values, examples = (np.array([each[key] for each in known]) for key in (name, EXAMPLES))
    found |= {"mean": float(values.mean()), "std": float(values.std())}
    found["worst-tenth"] = float(values[: -(-len(values) // 10)].mean())
    weights = examples / examples.sum()
    mean = float(weights @ values)
    # The share of each client that lies in the tenth of all examples whose clients have the lowest values.
    lowest = np.diff(np.minimum(np.cumsum(weights), 0.1), prepend=0)
    found |= {"weighted-mean": mean, "weighted-std": float(np.sqrt(weights @ (values - mean) ** 2))}
    found["weighted-worst-tenth"] = float(lowest @ values / lowest.sum())
    return found
