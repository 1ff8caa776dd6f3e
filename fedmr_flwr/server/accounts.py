"""The account of a round: what its row of metrics says of clients, replies and failures."""

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import Message

from fedmr_flwr.wire.checks import UNKNOWN_CLIENT, Failure
from fedmr_flwr.wire.grids.roster import Exchange
from fedmr_flwr.wire.messages import METRICS

Row = dict[str, Any]

# The server reports these itself: clients' metrics with such names are dropped.
_RESERVED = {
    "round", "seconds", "bad", "replies", "failures", "failures-by-kind", "failed", "lost-state", "clients", "slots",
    "similarity", "spread", "recombination", "bytes-down", "bytes-up", "test-loss", "test-accuracy",
    "validation-loss", "validation-accuracy",
    "slot-accuracies", "evaluation-seconds", "problem", "limited-examples", "refused", "collapse",
    "training-set-loss", "training-set-accuracy", "macro-f1", "balanced-accuracy", "top-5", "client-accuracy",
    "tuned-accuracy",
    "slot-client-accuracy", "slot-tuned-accuracy", "around-training",
}  # fmt: skip
# What clients measure before and after they train.
_AROUND = ("before-loss", "before-accuracy", "after-loss", "after-accuracy")


def with_reason(failure: Failure, exchange: Exchange) -> Failure:
    """Return the failure of a missing reply with its reason, if its node was not connected."""
    if failure.client not in exchange.offline:
        return failure
    return replace(failure, kind="offline", reason="its node is not connected, or not accepted")


def counts(exchange: Exchange, good: int, failures: Sequence[Failure]) -> Row:
    """Return the counts of a round's messages, replies and bytes."""
    row: Row = {"clients": exchange.clients, "replies": good, "failures": len(failures)}
    row |= {"bytes-down": exchange.bytes_down, "bytes-up": exchange.bytes_up}
    if failures:
        kinds = Counter(failure.kind for failure in failures)
        row |= {"failures-by-kind": dict(sorted(kinds.items())), "failed": [vars(failure) for failure in failures]}
    return row


def around_training(messages: Sequence[Message], exchange: Exchange, good: Container[int]) -> list[Row]:
    """Return what each client with a good reply measured before and after it trained."""
    clients = {
        message.metadata.message_id: client for message, client in zip(messages, exchange.clients, strict=True)
    }
    rows: list[Row] = []
    for reply in exchange.replies:
        client = clients.get(reply.metadata.reply_to_message_id, UNKNOWN_CLIENT)
        if client in good:
            metrics = reply.content.metric_records[METRICS]
            rows.append({"client": client, **{name: metrics[name] for name in _AROUND if name in metrics}})
    return rows


def too_few_replies(good: int, failures: Sequence[Failure], exchange: Exchange, least: int) -> str:
    """Return why a round is bad, with the first failure."""
    who = f"{good} of {len(exchange.clients)} clients" if good else "no client"
    fewer = f", fewer than min-good-replies = {least}" if good else ""
    first = f" (client {failures[0].client}: {failures[0].kind}: {failures[0].reason})" if failures else ""
    return f"{who} gave a good reply{fewer}{first}"


def client_metrics(metrics: Mapping[str, Any]) -> Row:
    """Return the clients' metrics that a row keeps: a client chooses their names, and lists are no numbers."""
    return {name: value for name, value in metrics.items() if name not in _RESERVED and not isinstance(value, list)}
