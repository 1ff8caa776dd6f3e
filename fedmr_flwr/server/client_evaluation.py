"""The evaluation of a global model on each client's own data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict

from fedmr_flwr.wire.grids.roster import RosterGrid
from fedmr_flwr.wire.messages import ARRAYS, CONFIG, METRICS


def accuracies(
    grid: RosterGrid, arrays: ArrayRecord, config: ConfigRecord, at_once: int, timeout: float
) -> list[float | None]:
    """Request a model's accuracy on every client's own examples.

    Args:
        grid: sends the messages.
        arrays: the model.
        config: sent with the model.
        at_once: the number of clients at a time; each gets the whole model.
        timeout: seconds to wait for them.

    Returns:
        For each client, in the order of their numbers, a share from 0 to 1; None for one that did not reply.
    """
    nodes = grid.get_node_ids()
    found: list[float | None] = []
    # In portions: messages to all clients at once would need memory for as many models.
    for start in range(0, len(nodes), at_once):
        messages = [
            Message(RecordDict({ARRAYS: arrays, CONFIG: config}), node, MessageType.EVALUATE)
            for node in nodes[start : start + at_once]
        ]
        replies = grid.send_and_receive(messages, timeout=timeout)
        by_message = {reply.metadata.reply_to_message_id: reply for reply in replies}
        found += [_accuracy(by_message.get(message.metadata.message_id)) for message in messages]
    return found


def _accuracy(reply: Message | None) -> float | None:
    metrics = reply.content.get(METRICS) if reply and reply.has_content() else None
    value = metrics.get("accuracy") if isinstance(metrics, MetricRecord) else None
    # A client may report anything, NaN included; the comparison is false for it.
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None


def summary(scores: Sequence[float | None]) -> dict[str, Any]:
    """Summarise the clients' accuracies.

    Args:
        scores: from 0 to 1; None for clients that did not reply.

    Returns:
        mean, std (the standard deviation over clients), worst-tenth (the mean of the tenth of the clients, rounded
        up, with the lowest accuracies), clients (the number of replies) and accuracies (all of them).
    """
    known = np.sort([score for score in scores if score is not None])
    if not len(known):
        return {"clients": 0, "accuracies": list(scores)}
    return {
        "mean": float(known.mean()),
        "std": float(known.std()),
        "worst-tenth": float(known[: -(-len(known) // 10)].mean()),
        "clients": len(known),
        "accuracies": list(scores),
    }
