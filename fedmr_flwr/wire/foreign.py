"""Replies of clients that were not written for this project: other names of records, and other types of numbers.

They are brought into the form that `wire.checks` expects; what is not plain is left as it is, and refused there.
"""

from collections.abc import Collection, Iterable, Mapping
from copy import copy
from typing import NamedTuple

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fedmr_flwr.errors import RecordError
from fedmr_flwr.wire.checks import Failure, Judged, judge
from fedmr_flwr.wire.codec import with_dtype
from fedmr_flwr.wire.messages import ARRAYS, EXAMPLES, METRICS, RETURNS
from fedmr_flwr.wire.numbers import LARGEST


class Answer(NamedTuple):
    """The content of a good reply.

    Attributes:
        content: its model as "arrays", in the types that were sent, and its metrics as "metrics".
        original: as the client sent it.
    """

    content: RecordDict
    original: RecordDict


def judge_foreign(
    sent: Mapping[int, Message], replies: Iterable[Message], arrays: str = ARRAYS, weight: str = EXAMPLES
) -> Judged[Answer]:
    """Divide the replies to a round's messages into good and rejected ones.

    Args:
        sent: the message to each client.
        replies: in any order.
        arrays: the name of the model's record in the messages.
        weight: the name of the metric by which replies are weighted.
    """
    given = list(replies)
    contents = {id(reply.metadata): reply.content for reply in given if reply.has_content()}
    for message in [*sent.values()][:1]:
        model = message.content.array_records[arrays]
        vectors = set(message.content.config_records.get(RETURNS, ()))
        given = [_as_ours(reply, model, vectors, arrays, weight) for reply in given]
    judged = judge({client: _sent_as_ours(message, arrays) for client, message in sent.items()}, given)
    good, failures = {}, list(judged.failures)
    for client, reply in judged.good.items():
        original = contents[id(reply.metadata)]
        reply.content[METRICS] = metrics_of(original)
        good[client] = Answer(reply.content, original)
        if weight != EXAMPLES and not _is_weight(metrics_of(original).get(weight)):
            del good[client]
            failures.append(
                Failure(client, "malformed", f"the reply has no positive number '{weight}' in its metrics")
            )
    return Judged(good, tuple(failures), judged.lost_state)


def metrics_of(content: RecordDict) -> MetricRecord:
    """Return the record "metrics" of a reply, or its only record of metrics, whatever its name is."""
    found = content.metric_records
    if METRICS in found:
        return found[METRICS]
    return next(iter(found.values())) if len(found) == 1 else MetricRecord()


def _as_ours(reply: Message, model: ArrayRecord, vectors: Collection[str], arrays: str, weight: str) -> Message:
    """Return a reply with our names and types, without the records that nobody asked for."""
    if not reply.has_content():
        return reply
    content = RecordDict({name: record for name, record in reply.content.items() if name in vectors})
    found = {name: record for name, record in reply.content.array_records.items() if name not in vectors}
    # Flower's strategies take the only record of a kind, and do not look at its name.
    record = found.get(arrays) or (next(iter(found.values())) if len(found) == 1 else None)
    if record is not None:
        content[ARRAYS] = _with_dtypes_of(model, record)
    if metrics := metrics_of(reply.content):
        # Another weight than a number of examples may be less than one; it is checked by itself.
        content[METRICS] = MetricRecord({**metrics} if weight == EXAMPLES else {**metrics, EXAMPLES: 1})
    return _with(reply, content)


def _sent_as_ours(message: Message, arrays: str) -> Message:
    if arrays == ARRAYS:
        return message
    content = RecordDict({**message.content})
    content[ARRAYS] = content.pop(arrays)
    return _with(message, content)


def _with(message: Message, content: RecordDict) -> Message:
    own = copy(message)
    own.content = content
    return own


def _with_dtypes_of(model: ArrayRecord, record: ArrayRecord) -> ArrayRecord:
    """Return a client's arrays in the types in which they were sent; NumPy's float64 spreads easily."""
    out = ArrayRecord()
    for name, array in record.items():
        out[name] = array
        try:
            if name in model and array.dtype != model[name].dtype:
                out[name] = with_dtype(array, model[name].dtype)
        except RecordError:
            pass  # it is damaged: the check says how
    return out


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and 1 / LARGEST < value < LARGEST
