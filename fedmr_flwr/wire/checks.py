"""Checks of the replies to a round's messages."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict

from fedmr_flwr.errors import RecordError
from fedmr_flwr.wire.flower.messages import REFUSED, ErrorCode
from fedmr_flwr.wire.messages import ARRAYS, EXAMPLES, LOST_STATE, METRICS, RETURNS, vectors
from fedmr_flwr.wire.npy import DeviceArray, view
from fedmr_flwr.wire.numbers import LARGEST, find_metric_problem, implausible_losses

T = TypeVar("T")
_log = logging.getLogger(__name__)
# The number of an unknown client.
UNKNOWN_CLIENT = -1


@dataclass(frozen=True)
class Failure:
    """The reason why a client's reply is rejected.

    Attributes:
        client: the client's number, -1 if unknown.
        kind: one of client-error, actor-died, expired, offline, node-lost, no-reply, duplicate, unsolicited,
            malformed, not-finite, no-examples, outlier, other.
        reason: one line.
    """

    client: int
    kind: str
    reason: str


@dataclass(frozen=True)
class Judged(Generic[T]):
    """The replies of a round, divided into good and rejected ones.

    Attributes:
        good: the good replies by client.
        failures: the reasons for rejecting the others, in the order of the clients; then unsolicited replies,
            then outliers.
        lost_state: the clients with a good reply that have lost the state of their last one.
    """

    good: Mapping[int, T]
    failures: tuple[Failure, ...] = ()
    lost_state: tuple[int, ...] = ()


# Returns the kind and the reason of what is wrong with the model of a reply to a message; None for a good one.
FindModelProblem = Callable[[ArrayRecord, Message], tuple[str, str] | None]


def _differs_from_sent(record: ArrayRecord, sent: Message) -> tuple[str, str] | None:
    """Check that a model has the arrays of the one that was sent, and that its values are finite."""
    return _find_model_problem(record, sent.content.array_records[ARRAYS])


def judge(
    sent: Mapping[int, Message],
    replies: Iterable[Message],
    stated: Mapping[int, int] | None = None,
    find_model_problem: FindModelProblem = _differs_from_sent,
) -> Judged[Message]:
    """Divide the replies to a round's messages into good and rejected ones.

    Args:
        sent: the message to each client, one for each node.
        replies: in any order.
        stated: the number of examples that each client stated before the first round, as far as known; means are
            weighted by it, so a client must not change it.
        find_model_problem: checks the model of a reply.
    """
    # By the message that it replies to: the late reply to an earlier round comes from the same node. Only messages
    # that a wrapper of the Grid replaced by its own were never given an identifier: they are matched by node.
    by_message = {message.metadata.message_id: client for client, message in sent.items()}
    by_node = {m.metadata.dst_node_id: client for client, m in sent.items() if not m.metadata.message_id}
    found: dict[int, list[Message]] = {client: [] for client in sent}
    unsolicited: list[Failure] = []
    for reply in replies:
        facts = reply.metadata
        client = by_node.get(facts.src_node_id, by_message.get(facts.reply_to_message_id, UNKNOWN_CLIENT))
        if client == UNKNOWN_CLIENT:
            unsolicited.append(Failure(UNKNOWN_CLIENT, "unsolicited", "it replies to a message that was not sent"))
        else:
            found[client].append(reply)
    good, failures = {}, []
    for client, group in found.items():
        if problem := _find_group_problem(group, sent[client], (stated or {}).get(client), find_model_problem):
            failures.append(Failure(client, *problem))
        else:
            good[client] = group[0]
    lost = tuple(client for client, reply in good.items() if _lost_state(reply))
    implausible = implausible_losses(
        {client: reply.content.metric_records[METRICS] for client, reply in good.items()}
    )
    return rejecting(Judged(good, (*failures, *unsolicited), lost), implausible)


def _find_group_problem(
    group: Sequence[Message], sent: Message, stated: int | None, find_model_problem: FindModelProblem
) -> tuple[str, str] | None:
    if not group:
        return "no-reply", "no reply in time"
    if len(group) > 1:
        # Neither of two replies to one message can be trusted: the slot keeps its model.
        return "duplicate", f"{len(group)} replies to one message"
    return find_problem(group[0], sent, stated, find_model_problem)


def _lost_state(reply: Message) -> bool:
    metrics = reply.content.get(METRICS)
    return isinstance(metrics, MetricRecord) and bool(metrics.get(LOST_STATE))


# The longest reason, in characters: some contain a whole log, with a terminal's colours.
_LINE = 300
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


_RAYS_OWN = re.compile(r"<class 'ray\.exceptions\.(?!RayTaskError)\w+")
# Errors of the SuperLink itself, not of a node.
NOT_A_NODES = {ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE}
# Flower's error codes by the kinds of `Failure`.
_KINDS = {
    1: "client-error", 2: "client-error", 3: "expired", 4: "expired", 5: "node-lost", 8: "client-error",
    REFUSED: "malformed",
}  # fmt: skip


def find_problem(
    reply: Message,
    sent: Message,
    stated: int | None = None,
    find_model_problem: FindModelProblem = _differs_from_sent,
) -> tuple[str, str] | None:
    """Check a reply.

    Args:
        reply: the reply.
        sent: its message; unless it asks for an evaluation, the reply must have a model.
        stated: the number of examples that the client stated before the first round; None if it is unknown.
        find_model_problem: checks that model.

    Returns:
        The kind and the reason of a failure; None for a good reply.
    """
    if not reply.has_content():
        kind, reason = _KINDS.get(reply.error.code, "other"), str(reply.error.reason)
        # An exception of Ray's own means a dead process; exceptions of a client arrive as RayTaskError. Not only
        # ActorDiedError: until Ray has noticed that a node is lost, it raises others.
        if kind == "other" and _RAYS_OWN.search(reason):
            return "actor-died", f"the Ray worker of this client died: {one_line(reason)}"
        return kind, one_line(reason)
    try:
        metrics, arrays = reply.content.get(METRICS), reply.content.get(ARRAYS)
        asked = {ARRAYS, METRICS, *sent.content.config_records.get(RETURNS, {})}
        if beyond := sorted(set(reply.content) - asked):
            return "malformed", one_line(f"the reply has records that nobody asked for: {', '.join(beyond)}")
        examples = metrics.get(EXAMPLES) if isinstance(metrics, MetricRecord) else None
        if not isinstance(examples, int | float) or not abs(examples) < LARGEST:
            return "malformed", f"the reply has no valid number '{EXAMPLES}' in its '{METRICS}'"
        if examples < 1:
            return "no-examples", f"the client trained on {examples} examples"
        if stated is not None and examples != stated:
            return "malformed", f"the client states {examples} examples, and stated {stated} before the first round"
        assert isinstance(metrics, MetricRecord)
        if problem := find_metric_problem(metrics):
            return problem
        if sent.metadata.message_type == MessageType.EVALUATE:
            return None
        if not isinstance(arrays, ArrayRecord):
            return "malformed", f"the reply has no '{ARRAYS}'"
        return find_model_problem(arrays, sent) or _find_vector_problem(reply.content, sent.content)
    except RecordError as error:
        return "malformed", one_line(str(error))


def one_line(text: str) -> str:
    """Return a client's text as one line of bounded length."""
    # No line breaks or control characters: a client must not be able to forge a line of the log.
    plain = "".join(char if char.isprintable() else " " for char in _COLOURS.sub("", text))
    line = " ".join(plain.split())
    # Ray and Flower put a traceback before the client's own exception.
    line = line.rpartition(" Message: ")[2]
    # Of a long text both ends: the start has the type of the error, the end often its reason.
    return line if len(line) <= _LINE else f"{line[: _LINE * 2 // 3]} … {line[-_LINE // 3 :]}"


def _find_model_problem(record: ArrayRecord, sent: ArrayRecord) -> tuple[str, str] | None:
    if set(record) != set(sent):
        return "malformed", one_line(f"the arrays {sorted(set(record) ^ set(sent))} are missing or unknown")
    for name, array in record.items():
        values = array.tensor if isinstance(array, DeviceArray) else view(array)
        if (array.dtype, tuple(array.shape)) != (sent[name].dtype, tuple(sent[name].shape)):
            expected = f"{sent[name].dtype}{list(sent[name].shape)}"
            return "malformed", f"'{name}' is {array.dtype}{list(array.shape)}, expected {expected}"
        if not is_finite(values):
            return "not-finite", f"'{name}' has NaN or infinite values"
    return None


def _find_vector_problem(content: RecordDict, sent: RecordDict) -> tuple[str, str] | None:
    wanted: Mapping[str, Any] = sent.config_records.get(RETURNS, {})
    for name in wanted:
        if len(content.array_records.get(name, {})) > 1:
            return "malformed", f"the record '{name}' has more than the vector that was asked for"
    found = vectors(content, wanted)
    for name, length in wanted.items():
        if name not in found:
            return "malformed", f"the reply has no vector '{name}', which the strategy needs"
        values = found[name]
        if values.dtype != np.float32 or values.shape != (length,):
            return "malformed", f"'{name}' is {values.dtype}{list(values.shape)}, expected float32[{length!r}]"
        if not is_finite(values):
            return "not-finite", f"'{name}' has NaN or infinite values"
    return None


def is_finite(values: Any) -> bool:
    """Return whether all values are finite."""
    if not isinstance(values, np.ndarray):
        return bool(values.isfinite().all())
    if values.dtype.kind != "f":
        return True
    flat = values.reshape(-1)
    # Not `np.isfinite(flat).all()`: that would allocate an array of bools as long as the model for each reply.
    if np.isfinite(np.vdot(flat, flat)):
        return True
    # The squares of large but finite values overflow.
    return bool(np.isfinite([flat.min(), flat.max()]).all())


def without_outliers(
    judged: Judged[T], lengths: Sequence[float], guard: float, what: str = "its update is"
) -> Judged[T]:
    """Reject trained models with a much longer update than most.

    Args:
        judged: the replies of a round.
        lengths: of the update of each good reply.
        guard: the longest accepted update, in multiples of the median length.
        what: begins the reason.
    """
    # The median, because fewer than half of the clients cannot shift it arbitrarily, unlike the mean.
    median = float(np.median(lengths)) if lengths else 0.0
    too_long = {
        client: f"{what} {length / median:.1f} times as long as the median; the guard accepts {guard:g}"
        for client, length in zip(judged.good, lengths, strict=True)
        if 0 < guard * median < length
    }
    return rejecting(judged, too_long)


def rejecting(judged: Judged[T], outliers: Mapping[int, str]) -> Judged[T]:
    """Reject some of the good replies as outliers.

    Args:
        judged: the replies of a round.
        outliers: the reason by client.
    """
    return Judged(
        {client: reply for client, reply in judged.good.items() if client not in outliers},
        (*judged.failures, *(Failure(client, "outlier", reason) for client, reason in outliers.items())),
        tuple(client for client in judged.lost_state if client not in outliers),
    )


def log_failures(failures: Iterable[Failure]) -> None:
    """Log the reason for each rejected reply."""
    for failure in failures:
        _log.warning("client %s: %s: %s", failure.client, failure.kind, failure.reason)
