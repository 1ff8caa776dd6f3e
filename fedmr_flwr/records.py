"""The wire contract: models and settings as Flower records, and what is wrong with a record that came back.

Messages to clients hold "arrays" (the model) and "config"; replies hold "arrays" and "metrics" with
"num-examples". What else an algorithm exchanges, such as control variates, are vectors in records of their
own names. A model travels packed, as one array per type ("floats", "ints"), or as one array per
tensor, as `ArrayRecord(model.state_dict())` makes it.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from numpy.typing import DTypeLike, NDArray

from fedmr_flwr.errors import RecordError
from fedmr_flwr.layout import Floats, Layout, Packed

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
FLOATS, INTS = "floats", "ints"
EXAMPLES = "num-examples"
ROUND = "server-round"
# Under this key a message says in which round the client's last good reply was, 0 if there is none yet.
LAST_ROUND = "last-round"
# A record of a message that names the vectors that the reply must hold, and their lengths.
RETURNS = "returns"
# Under this key a reply's metrics say that what the client should have kept is not there.
LOST_STATE = "lost-state"


# The head of an .npy file as NumPy writes it for plain numbers. NumPy's own reader evaluates the text as a
# Python literal, which bytes from the network can make fail in many ways.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype>[<>|][fiub]\d+)', "
    rb"'fortran_order': (?P<fortran>True|False), 'shape': \((?P<shape>[0-9, ]*)\), \} *\n",
    re.DOTALL,
)


def join(pieces: Sequence[NDArray[Any]], dtype: DTypeLike) -> Array:
    """Serialise the concatenation of vectors in a single copy.

    Recombination ends here: a recombined model is never put together before it is sent.

    Args:
        pieces: contiguous vectors of the type.
        dtype: the type of the result.
    """
    length = sum(len(piece) for piece in pieces)
    data = b"".join([_head(np.dtype(dtype), length), *(piece.data.cast("B") for piece in pieces if len(piece))])
    return Array(np.dtype(dtype).name, (length,), "numpy.ndarray", data)


class HeldArray(Array):
    """An array that stays where it is, on a GPU, for readers in this process; it becomes bytes if somebody asks.

    Args:
        tensor: [N] float32.
    """

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor
        self.dtype, self.shape, self.stype = "float32", tuple(tensor.shape), "numpy.ndarray"

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The bytes of an .npy file."""
        return join([self.tensor.numpy(force=True)], np.float32).data

    @property
    def nbytes(self) -> int:
        """How many they are."""
        return len(_head(np.dtype(np.float32), *self.shape)) + 4 * self.shape[0]


def size(array: Array) -> int:
    """Return how many bytes of data an array has, on the wire or if it were sent."""
    return array.nbytes if isinstance(array, HeldArray) else len(array.data)


@lru_cache(maxsize=64)
def _head(dtype: np.dtype[Any], length: int) -> bytes:
    """Return how the .npy file of a vector begins."""
    file = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, facts)
    return file.getvalue()


def view(array: Array) -> NDArray[Any]:
    """Return a received array as a read-only view of its bytes.

    Raises:
        RecordError: the bytes are not an array of numbers of the stated type and shape.
    """
    values = read(array.data)
    if (values.dtype.name, values.shape) != (array.dtype, tuple(array.shape)):
        found = f"{values.dtype.name}{list(values.shape)}"
        raise RecordError(f"an array is damaged: it states {array.dtype}{list(array.shape)} but holds {found}")
    return values


def read(data: bytes) -> NDArray[Any]:
    """Return what an .npy file holds as a read-only view of its bytes.

    Raises:
        RecordError: the bytes are not an array of numbers.
    """
    try:
        start = 10 + int.from_bytes(data[8:10], "little")
        dtype, shape, order = _parsed(data[:start])
        return np.frombuffer(data, dtype, offset=start).reshape(shape, order=order)
    except (ValueError, TypeError) as error:
        raise RecordError(f"an array is damaged: {error}") from None


@lru_cache(maxsize=64)
def _parsed(head: bytes) -> tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"]]:
    """Return the type, shape and order that the head of an .npy file states."""
    header = _HEADER.fullmatch(head)
    if header is None:
        raise ValueError("it does not begin as NumPy arrays do")
    dtype = np.dtype(header["dtype"].decode())
    shape = tuple(int(size) for size in header["shape"].replace(b",", b" ").split())
    if not dtype.isnative:
        raise ValueError(f"type {dtype} is no number of this machine")
    return dtype, shape, "F" if header["fortran"] == b"True" else "C"


def vector_record(values: NDArray[Any]) -> ArrayRecord:
    """Turn a vector that travels besides the model into a record."""
    record = ArrayRecord()
    record[FLOATS] = join([values], np.float32)
    return record


def vectors(content: RecordDict, names: Iterable[str]) -> dict[str, Floats]:
    """Return the vectors that came besides the model.

    Args:
        content: of the message.
        names: of the vectors' records; those that are not there are left out.

    Raises:
        RecordError: one is damaged.
    """
    found = {name: content.array_records.get(name) for name in names}
    return {name: view(record[FLOATS]) for name, record in found.items() if record and FLOATS in record}


def retyped(record: ArrayRecord, before: ArrayRecord) -> ArrayRecord:
    """Give a model's arrays back the types that they had; what must become an integer is rounded.

    Flower's own strategies average integers, such as BatchNorm's counters, into float64, and FedAdam makes
    float64 of everything; clients would refuse such a model or answer with another one.

    Args:
        record: the model.
        before: the model before the round.
    """
    out = ArrayRecord()
    for name, array in record.items():
        out[name] = array
        if name in before and array.dtype != before[name].dtype:
            values, dtype = view(array), np.dtype(before[name].dtype)
            out[name] = Array(np.asarray(np.rint(values) if dtype.kind in "iu" else values, dtype))
    return out


class Codec:
    """Models to records and back.

    Args:
        layout: of the models.
        packed: whether a model travels as one array per type; otherwise as one array per tensor.
        wire: in which type packed floats travel: "float32", or "float16" for half the bytes, which keeps eleven
            bits of each value.
    """

    def __init__(self, layout: Layout, packed: bool = True, wire: str = "float32") -> None:
        self.layout = layout
        self.packed = packed
        self._wire = np.dtype(wire)

    @classmethod
    def infer(cls, record: ArrayRecord) -> "Codec":
        """Take the layout from a record of one array per tensor.

        Raises:
            RecordError: an array is damaged or of a type that does not travel.
        """
        try:
            return cls(Layout.of({name: view(array) for name, array in record.items()}), packed=False)
        except TypeError as error:
            raise RecordError(f"the model cannot be packed: {error}") from None

    def encode(self, floats: Sequence[NDArray[Any]], ints: Sequence[NDArray[Any]]) -> ArrayRecord:
        """Turn a model into a record.

        Args:
            floats: vectors whose concatenation is the model's [P] floats.
            ints: vectors whose concatenation is the model's [Q] ints.

        Raises:
            RecordError: a value is too large for float16.
        """
        if self.packed:
            record = ArrayRecord()
            record[FLOATS] = self._joined(floats)
            if self.layout.counters:
                record[INTS] = join(ints, np.int64)
            return record
        whole = Packed(
            np.concatenate([*floats, np.empty(0, np.float32)]), np.concatenate([*ints, np.empty(0, np.int64)])
        )
        tensors = self.layout.unpack(Packed(whole.floats.astype(np.float32), whole.ints.astype(np.int64)))
        return ArrayRecord({name: Array(tensor) for name, tensor in tensors.items()})

    def decode(self, record: ArrayRecord) -> Packed:
        """Turn a record into a model; packed float32 without a copy, and from a GPU still there.

        Raises:
            RecordError: names, shapes or types are not the layout's.
        """
        arrays: dict[str, Any] = {
            name: array.tensor if isinstance(array, HeldArray) else view(array) for name, array in record.items()
        }
        try:
            if not self.packed:
                return self.layout.pack(arrays)
            floats = arrays.pop(FLOATS, np.empty(0, np.float32))
            ints = arrays.pop(INTS, np.empty(0, np.int64))
            if arrays:
                raise ValueError(f"unknown arrays {', '.join(sorted(arrays))}")
            held = not isinstance(floats, np.ndarray)
            if not held and (floats.dtype != self._wire or ints.dtype != np.int64):
                raise ValueError(f"the types are {floats.dtype} and {ints.dtype}, not {self._wire} and int64")
            self.layout.check(Packed(floats, ints))
        except ValueError as error:
            raise RecordError(f"the model does not fit: {error}") from None
        return Packed(floats if held else floats.astype(np.float32, copy=False), ints)

    def _joined(self, floats: Sequence[NDArray[Any]]) -> Array:
        """Return the concatenation of vectors as one array; on the GPU, if one of them lies there."""
        if any(not isinstance(piece, np.ndarray) for piece in floats):
            from fedmr_flwr import tensors

            joined = tensors.join(floats)
            if self._wire == np.float32:
                return HeldArray(joined)
            floats = [joined.numpy(force=True)]
        return join([self._narrow(piece) for piece in floats], self._wire)

    def _narrow(self, floats: NDArray[Any]) -> NDArray[Any]:
        """Return floats in the type in which they travel."""
        with np.errstate(over="ignore"):
            narrow = floats.astype(self._wire, copy=False)
        if narrow is not floats and not np.isfinite(narrow).all() and np.isfinite(floats).all():
            raise RecordError(
                f"the model holds {np.abs(floats).max():g}, too large to travel as {self._wire}; set wire=float32"
            )
        return narrow


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

# Flower's error codes (flwr.common.constant.ErrorCode) in words.
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
