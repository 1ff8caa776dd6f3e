"""What is wrong with a reply."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fedmr_flwr.errors import RecordError
from fedmr_flwr.wire.flower.messages import ErrorCode
from fedmr_flwr.wire.messages import ARRAYS, EXAMPLES, METRICS, RETURNS, vectors
from fedmr_flwr.wire.npy import HeldArray, view


@dataclass(frozen=True)
class Failure:
    """Why a client's reply did not count.

    Attributes:
        client: the client's number, -1 if it is not known.
        kind: one of client-error, actor-died, expired, node-lost, no-reply, duplicate, unasked, malformed,
            not-finite, no-examples, outlier, other.
        reason: one line.
    """

    client: int
    kind: str
    reason: str


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


def fault(reply: Message, sent: Message) -> tuple[str, str] | None:
    """Tell what is wrong with a reply, if anything.

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
        return _model_fault(arrays, expected) or _vector_fault(reply.content, sent.content)
    except RecordError as error:
        return "malformed", one_line(str(error))


def one_line(text: str) -> str:
    """Return what a client said as one line of bounded length that cannot pass for another line of the log."""
    plain = "".join(char if char.isprintable() else " " for char in _COLOURS.sub("", text))
    line = " ".join(plain.split())
    # Ray and Flower put a whole traceback before the client's own exception.
    line = line.rpartition(" Message: ")[2]
    return line if len(line) <= _LINE else f"{line[: _LINE * 2 // 3]} … {line[-_LINE // 3 :]}"


def _model_fault(record: ArrayRecord, sent: ArrayRecord) -> tuple[str, str] | None:
    if set(record) != set(sent):
        return "malformed", one_line(f"the arrays {sorted(set(record) ^ set(sent))} are missing or extra")
    for name, array in record.items():
        values = array.tensor if isinstance(array, HeldArray) else view(array)
        if (array.dtype, tuple(array.shape)) != (sent[name].dtype, tuple(sent[name].shape)):
            expected = f"{sent[name].dtype}{list(sent[name].shape)}"
            return "malformed", f"'{name}' is {array.dtype}{list(array.shape)}, not {expected}"
        if not _finite(values):
            return "not-finite", f"'{name}' holds NaN or infinite values"
    return None


def _vector_fault(content: RecordDict, sent: RecordDict) -> tuple[str, str] | None:
    wanted: Mapping[str, Any] = sent.config_records.get(RETURNS, {})
    found = vectors(content, wanted)
    for name, length in wanted.items():
        if name not in found:
            return "malformed", f"the reply has no '{name}', which the strategy needs"
        values = found[name]
        if values.dtype != np.float32 or values.shape != (length,):
            return "malformed", f"'{name}' is {values.dtype}{list(values.shape)}, not float32[{length!r}]"
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


def outliers(exchanges: Sequence[tuple[Message, Message]], limit: float) -> list[tuple[int, str]]:
    """Find the trained models that moved much further than most.

    Args:
        exchanges: good replies, each with the message that it answers.
        limit: how many times the median length of an update is still accepted.

    Returns:
        (index of the exchange, reason) for each of them. Fewer than half of the clients can fool it.
    """
    lengths = [_update_length(reply, sent) for reply, sent in exchanges]
    median = float(np.median(lengths)) if lengths else 0.0
    return [
        (at, f"its update is {length / median:.1f} times as long as the round's median, more than guard = {limit:g}")
        for at, length in enumerate(lengths)
        if 0 < limit * median < length
    ]


def _update_length(reply: Message, sent: Message) -> float:
    """Return the length of what a client added to its model, over all its floats."""
    after, before = reply.content.array_records[ARRAYS], sent.content.array_records[ARRAYS]
    squares = 0.0
    for name, array in after.items():
        values = view(array)
        if values.dtype.kind == "f":
            off = np.subtract(values, view(before[name]), dtype=np.float64).reshape(-1)
            squares += float(np.vdot(off, off))
    return float(np.sqrt(squares))
