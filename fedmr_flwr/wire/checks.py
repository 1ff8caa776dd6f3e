"""What is wrong with the replies to a round's messages."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fedmr_flwr.errors import RecordError
from fedmr_flwr.wire.flower.messages import ErrorCode
from fedmr_flwr.wire.messages import ARRAYS, EXAMPLES, LOST_STATE, METRICS, RETURNS, vectors
from fedmr_flwr.wire.npy import DeviceArray, view

T = TypeVar("T")
_log = logging.getLogger(__name__)
# The number of a client that is not known.
UNKNOWN_CLIENT = -1


@dataclass(frozen=True)
class Failure:
    """Why a client's reply did not count.

    Attributes:
        client: the client's number, -1 if it is not known.
        kind: one of client-error, actor-died, expired, offline, node-lost, no-reply, duplicate, unsolicited,
            malformed, not-finite, no-examples, outlier, other.
        reason: one line.
    """

    client: int
    kind: str
    reason: str


@dataclass(frozen=True)
class Judged(Generic[T]):
    """The replies of a round, sorted out.

    Attributes:
        good: the good replies by client.
        failures: why the others did not count, in the order of the clients asked; after them the replies that
            nobody asked for, then the outliers.
        lost_state: the clients with a good reply that have lost what they kept since their last one.
    """

    good: Mapping[int, T]
    failures: tuple[Failure, ...] = ()
    lost_state: tuple[int, ...] = ()


def judge(sent: Mapping[int, Message], replies: Iterable[Message]) -> Judged[Message]:
    """Sort the replies to a round's messages by client, and find what is wrong with them.

    Args:
        sent: the message to each client, one to a node.
        replies: in any order. A good one is known by the node that it comes from; an error that Flower itself
            reports by the message that it answers, or else by what is missing.
    """
    by_node = {message.metadata.dst_node_id: client for client, message in sent.items()}
    by_message = {message.metadata.message_id: client for client, message in sent.items()}
    found: dict[int, list[Message]] = {client: [] for client in sent}
    strays = []
    for reply in replies:
        facts = reply.metadata
        client = by_node.get(facts.src_node_id, by_message.get(facts.reply_to_message_id, UNKNOWN_CLIENT))
        if client == UNKNOWN_CLIENT:
            strays.append(Failure(UNKNOWN_CLIENT, "unsolicited", "a reply to a message that was not sent"))
        else:
            found[client].append(reply)
    good, failures = {}, []
    for client, group in found.items():
        if problem := _find_group_problem(group, sent[client]):
            failures.append(Failure(client, *problem))
        else:
            good[client] = group[0]
    lost = tuple(client for client, reply in good.items() if _lost_state(reply))
    return Judged(good, (*failures, *strays), lost)


def _find_group_problem(group: Sequence[Message], sent: Message) -> tuple[str, str] | None:
    if not group:
        return "no-reply", "no reply came in time"
    if len(group) > 1:
        return "duplicate", f"{len(group)} replies came to one message"
    return find_problem(group[0], sent)


def _lost_state(reply: Message) -> bool:
    metrics = reply.content.get(METRICS)
    return isinstance(metrics, MetricRecord) and bool(metrics.get(LOST_STATE))


# No client has so many examples; the bound also refuses NaN, infinity and integers beyond any float.
MOST_EXAMPLES = 1e15

# The longest reason, in characters: some hold a whole log, with a terminal's colours.
_LINE = 300
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

# Flower's error codes in words.
_RAYS_OWN = re.compile(r"<class 'ray\.exceptions\.(?!RayTaskError)\w+")
# Those that Flower makes itself: no node has said them.
NOT_A_NODES = {ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE}
_KINDS = {1: "client-error", 2: "client-error", 3: "expired", 4: "expired", 5: "node-lost", 8: "client-error"}


def find_problem(reply: Message, sent: Message) -> tuple[str, str] | None:
    """Find what is wrong with a reply, if anything.

    Args:
        reply: what came back.
        sent: the message that it answers; the reply must hold a model of the same form.

    Returns:
        The kind and the reason of the failure, or None for a good reply.
    """
    if not reply.has_content():
        kind, reason = _KINDS.get(reply.error.code, "other"), str(reply.error.reason)
        # Ray's own exceptions; what a client raises, Ray hands on as a RayTaskError.
        if kind == "other" and _RAYS_OWN.search(reason):
            return "actor-died", f"Ray lost the process that trained it: {one_line(reason)}"
        return kind, one_line(reason)
    try:
        metrics, arrays, expected = reply.content.get(METRICS), reply.content.get(ARRAYS), sent.content[ARRAYS]
        examples = metrics.get(EXAMPLES) if isinstance(metrics, MetricRecord) else None
        if not isinstance(examples, int | float) or not abs(examples) < MOST_EXAMPLES:
            return "malformed", f"the reply has no number '{EXAMPLES}' in its '{METRICS}'"
        if examples < 1:
            return "no-examples", f"the client trained on {examples} examples"
        if not isinstance(arrays, ArrayRecord):
            return "malformed", f"the reply has no '{ARRAYS}'"
        assert isinstance(expected, ArrayRecord)
        return _find_model_problem(arrays, expected) or _find_vector_problem(reply.content, sent.content)
    except RecordError as error:
        return "malformed", one_line(str(error))


def one_line(text: str) -> str:
    """Return what a client said as one line of bounded length that cannot pass for another line of the log."""
    plain = "".join(char if char.isprintable() else " " for char in _COLOURS.sub("", text))
    line = " ".join(plain.split())
    # Ray and Flower put a whole traceback before the client's own exception.
    line = line.rpartition(" Message: ")[2]
    return line if len(line) <= _LINE else f"{line[: _LINE * 2 // 3]} … {line[-_LINE // 3 :]}"


def _find_model_problem(record: ArrayRecord, sent: ArrayRecord) -> tuple[str, str] | None:
    if set(record) != set(sent):
        return "malformed", one_line(f"the arrays {sorted(set(record) ^ set(sent))} are missing or extra")
    for name, array in record.items():
        values = array.tensor if isinstance(array, DeviceArray) else view(array)
        if (array.dtype, tuple(array.shape)) != (sent[name].dtype, tuple(sent[name].shape)):
            expected = f"{sent[name].dtype}{list(sent[name].shape)}"
            return "malformed", f"'{name}' is {array.dtype}{list(array.shape)}, expected {expected}"
        if not _finite(values):
            return "not-finite", f"'{name}' holds NaN or infinite values"
    return None


def _find_vector_problem(content: RecordDict, sent: RecordDict) -> tuple[str, str] | None:
    wanted: Mapping[str, Any] = sent.config_records.get(RETURNS, {})
    found = vectors(content, wanted)
    for name, length in wanted.items():
        if name not in found:
            return "malformed", f"the reply has no '{name}', which the strategy needs"
        values = found[name]
        if values.dtype != np.float32 or values.shape != (length,):
            return "malformed", f"'{name}' is {values.dtype}{list(values.shape)}, expected float32[{length!r}]"
        if not _finite(values):
            return "not-finite", f"'{name}' holds NaN or infinite values"
    return None


def _finite(values: Any) -> bool:
    """Tell whether all values are finite, reading them once and making no temporary array."""
    if not isinstance(values, np.ndarray):
        return bool(values.isfinite().all())
    if values.dtype.kind != "f":
        return True
    flat = values.reshape(-1)
    if np.isfinite(np.vdot(flat, flat)):
        return True
    # The square of large but finite values overflows, so look again.
    return bool(np.isfinite([flat.min(), flat.max()]).all())


def without_outliers(judged: Judged[T], lengths: Sequence[float], guard: float) -> Judged[T]:
    """Refuse the trained models that moved much further than most. Fewer than half of the clients can fool it.

    Args:
        judged: the replies of a round.
        lengths: of the update of each good one.
        guard: how many times the median length is still accepted.
    """
    median = float(np.median(lengths)) if lengths else 0.0
    too_long = {
        client: f"its update is {length / median:.1f} times as long as the median; guard is {guard:g}"
        for client, length in zip(judged.good, lengths, strict=True)
        if 0 < guard * median < length
    }
    return Judged(
        {client: reply for client, reply in judged.good.items() if client not in too_long},
        (*judged.failures, *(Failure(client, "outlier", reason) for client, reason in too_long.items())),
        tuple(client for client in judged.lost_state if client not in too_long),
    )


def log_failures(failures: Iterable[Failure]) -> None:
    """Log why replies did not count, a line each."""
    for failure in failures:
        _log.warning("client %s: %s: %s", failure.client, failure.kind, failure.reason)
