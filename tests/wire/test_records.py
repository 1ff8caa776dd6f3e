import re

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedmr_flwr.core.layout import Layout
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.errors import RecordError
from fedmr_flwr.wire.checks import find_problem
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.messages import vector_record, vectors
from fedmr_flwr.wire.npy import DeviceArray, join, size, view

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.count": np.array(7, np.int64),
    "b": np.array([0.5], np.float16),
}
LAYOUT = Layout.of(ARRAYS)


@given(st.lists(st.integers(0, 5), max_size=5))
def test_join_equals_flowers_array(lengths):
    pieces = [np.arange(length, dtype=np.float32) for length in lengths]
    whole = np.concatenate([*pieces, np.empty(0, np.float32)])
    joined = join(pieces, np.float32)
    np.testing.assert_array_equal(joined.numpy(), whole, strict=True)
    assert (joined.dtype, joined.shape, joined.stype) == (Array(whole).dtype, Array(whole).shape, Array(whole).stype)
    np.testing.assert_array_equal(view(joined), whole, strict=True)


@pytest.mark.parametrize("array", [*ARRAYS.values(), np.zeros((2, 0)), np.asfortranarray(np.ones((2, 3)))])
def test_view_does_not_copy(array):
    record = Array(array)
    values = view(record)
    np.testing.assert_array_equal(values, array, strict=True)
    assert not values.flags.writeable
    assert not values.flags.owndata


@pytest.mark.parametrize(
    "broken",
    [
        lambda a: Array(a.dtype, a.shape, a.stype, a.data[:-1]),
        lambda a: Array(a.dtype, a.shape, a.stype, b""),
        lambda a: Array(a.dtype, a.shape, a.stype, b"\x80\x04pickle"),
        lambda a: Array(a.dtype, (3, 2), a.stype, a.data),
        lambda a: Array("float64", a.shape, a.stype, a.data),
        lambda a: Array(a.dtype, a.shape, a.stype, a.data.replace(b"<f4", b"|O8")),
        lambda a: Array(a.dtype, a.shape, a.stype, a.data.replace(b"<f4", b">f4")),
        lambda a: Array(a.dtype, a.shape, a.stype, a.data.replace(b"(2, 3), }", b"(2,03), }")),  # no number of Python
    ],
    ids=["short", "empty", "pickle", "shape", "dtype", "object", "byte order", "leading zero"],
)
def test_damaged_array_is_refused(broken):
    with pytest.raises(RecordError, match="an array is damaged"):
        view(broken(Array(ARRAYS["a.weight"])))


@given(st.binary(max_size=200), st.integers(0, 130))
def test_random_bytes_raise_record_error(noise, keep):
    good = Array(ARRAYS["a.weight"]).data
    data = good[:keep] + noise
    try:
        values = view(Array("float32", (2, 3), "numpy.ndarray", data))
    except RecordError:
        return
    assert (values.dtype, values.shape) == (np.float32, (2, 3))


@pytest.mark.parametrize("packed", [True, False])
def test_codec_round_trip(packed):
    codec, model = Codec(LAYOUT, packed), LAYOUT.pack(ARRAYS)
    record = codec.encode(Parts([model.floats[:2], model.floats[2:]], [model.ints]))
    back = codec.decode(record)
    np.testing.assert_array_equal(back.floats, model.floats, strict=True)
    np.testing.assert_array_equal(back.ints, model.ints, strict=True)
    assert set(record) == ({"floats", "ints"} if packed else set(ARRAYS))


def test_inferred_codec_is_per_tensor():
    record = ArrayRecord({name: Array(array) for name, array in ARRAYS.items()})
    codec = Codec.infer(record)
    assert codec.layout == LAYOUT
    model = codec.decode(record)
    again = codec.encode(Parts([model.floats], [model.ints]))
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(again[name].numpy(), array, strict=True)


def test_no_integers_is_one_array():
    codec = Codec(Layout.of({"a": np.ones(3, np.float32)}))
    record = codec.encode(Parts([np.ones(3, np.float32)], []))
    assert list(record) == ["floats"]
    assert codec.decode(record).ints.tolist() == []


def test_float16_rounds_floats_alone():
    whole, half = Codec(LAYOUT), Codec(LAYOUT, wire="float16")
    values = np.array([1, 1 + 2**-10, 1 + 2**-12, 1 / 3, -65504, 2**-24, 0], np.float32)
    counter = np.array([2**53 + 1])
    record = half.encode(Parts([values[:3], values[3:]], [counter]))
    assert (
        len(record["floats"].data) - 128 == (len(whole.encode(Parts([values], [counter]))["floats"].data) - 128) / 2
    )
    back = half.decode(record)
    assert back.floats.dtype == np.float32
    assert back.floats.tolist() == [1, 1 + 2**-10, 1, 0.333251953125, -65504, 2**-24, 0]
    assert back.ints.tolist() == [2**53 + 1]
    assert half.encode(Parts([back.floats], [back.ints])) == record
    with pytest.raises(RecordError, match="expected float32 and int64"):
        whole.decode(record)


def test_float16_overflow_is_an_error():
    with pytest.raises(RecordError, match="the model has a value that is too large for float16; set wire=float32$"):
        Codec(LAYOUT, wire="float16").encode(
            Parts([np.array([0, 0, 0, 70000, 1, 2, 3], np.float32)], [np.array([1])])
        )


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (ArrayRecord({"floats": Array(np.zeros(6, np.float32)), "ints": Array(np.zeros(1, np.int64))}), "6 \\+ 1"),
        (ArrayRecord({"floats": Array(np.zeros(7, np.float32))}), "7 \\+ 0"),
        (ArrayRecord({"floats": Array(np.zeros(7)), "ints": Array(np.zeros(1, np.int64))}), "float64"),
        (ArrayRecord({"floats": Array(np.zeros(7, np.float32)), "more": Array(np.zeros(1))}), "unknown arrays more"),
    ],
)
def test_decode_refuses_another_model(record, message):
    with pytest.raises(RecordError, match=message):
        Codec(LAYOUT).decode(record)


def message_and_reply(change):
    model = LAYOUT.pack(ARRAYS)
    arrays = Codec(LAYOUT).encode(Parts([model.floats], [model.ints]))
    sent = Message(RecordDict({"arrays": arrays}), 1, "train")
    content = RecordDict(
        {"arrays": ArrayRecord(dict(arrays)), "metrics": MetricRecord({"num-examples": 5, "loss": 0.1})}
    )
    changed = change(content)
    return sent, Message(content if changed is None else changed, reply_to=sent)


def floats(values):
    def change(content):
        content["arrays"]["floats"] = Array(np.asarray(values))

    return change


def metrics(**values):
    def change(content):
        content["metrics"] = MetricRecord({name.replace("_", "-"): value for name, value in values.items()})

    return change


GOOD = np.zeros(7, np.float32)


@pytest.mark.parametrize(
    ("change", "kind", "reason"),
    [
        (floats(np.where(np.arange(7) == 3, np.nan, GOOD).astype(np.float32)), "not-finite", "'floats' has NaN"),
        (floats(np.where(np.arange(7) == 3, -np.inf, GOOD).astype(np.float32)), "not-finite", "'floats' has NaN"),
        (floats(np.zeros(8, np.float32)), "malformed", r"'floats' is float32\[8\], expected float32\[7\]"),
        (floats(np.zeros(7)), "malformed", r"'floats' is float64\[7\], expected float32\[7\]"),
        (metrics(num_examples=0), "no-examples", "0 examples"),
        (metrics(num_examples=-4), "no-examples", "-4 examples"),
        (metrics(num_examples=5e-324), "no-examples", "5e-324 examples"),
        (metrics(num_examples=float("nan")), "malformed", "no valid number 'num-examples'"),
        (metrics(num_examples=2**64), "malformed", "no valid number 'num-examples'"),
        (metrics(num_examples=[1]), "malformed", "no valid number 'num-examples'"),
        (metrics(loss=1.0), "malformed", "no valid number 'num-examples'"),
        (lambda content: content["arrays"].pop("ints") and None, "malformed", r"\['ints'\] are missing or unknown"),
        (lambda content: content.pop("arrays") and None, "malformed", "no 'arrays'"),
        (lambda content: content.pop("metrics") and None, "malformed", "no valid number"),
        (lambda content: RecordDict(), "malformed", "no valid number"),
    ],
)
def test_bad_replies_are_explained(change, kind, reason):
    sent, reply = message_and_reply(change)
    found = find_problem(reply, sent)
    assert found is not None
    assert found[0] == kind
    assert re.search(reason, found[1])


def asking_for_control(change):
    """A message that asks for a vector of three values, and a reply with such a one, changed."""
    sent, reply = message_and_reply(lambda content: None)
    sent.content["returns"] = ConfigRecord({"control": 3})
    reply.content["control"] = vector_record(np.array([1, 2, 3], np.float32))
    change(reply.content)
    return reply, sent


def control(array):
    def change(content):
        content["control"] = ArrayRecord({"floats": array})

    return change


@pytest.mark.parametrize(
    ("change", "kind", "reason"),
    [
        (
            lambda content: content.pop("control"),
            "malformed",
            "the reply has no vector 'control', which the strategy needs",
        ),
        (lambda content: content["control"].clear(), "malformed", "the reply has no vector 'control'"),
        (control(Array(np.zeros(4, np.float32))), "malformed", r"'control' is float32\[4\], expected float32\[3\]"),
        (control(Array(np.zeros(3))), "malformed", r"'control' is float64\[3\], expected float32\[3\]"),
        (control(Array("float32", (3,), "numpy.ndarray", b"noise")), "malformed", "damaged"),
        (control(Array(np.array([0, np.inf, 0], np.float32))), "not-finite", "'control' has NaN or infinite"),
    ],
)
def test_bad_vectors_are_explained(change, kind, reason):
    found = find_problem(*asking_for_control(change))
    assert found is not None
    assert found[0] == kind
    assert re.search(reason, found[1])


def test_vectors_are_read_by_name():
    reply, sent = asking_for_control(lambda content: None)
    assert find_problem(reply, sent) is None
    assert vectors(reply.content, ["control", "other"])["control"].tolist() == [1, 2, 3]
    assert vectors(reply.content, []) == {}


def test_good_reply_has_no_problem():
    sent, reply = message_and_reply(lambda content: None)
    assert find_problem(reply, sent) is None


def test_large_values_are_finite():
    sent, reply = message_and_reply(floats(np.full(7, 3e38, np.float32)))
    assert find_problem(reply, sent) is None


@pytest.mark.parametrize(("code", "kind"), [(2, "client-error"), (3, "expired"), (5, "node-lost"), (77, "other")])
def test_flowers_errors_have_names(code, kind):
    sent, _ = message_and_reply(lambda content: None)
    assert find_problem(Message(Error(code, "it\nbroke"), reply_to=sent), sent) == (kind, "it broke")


def test_dead_ray_worker_has_its_own_kind():
    sent, _ = message_and_reply(lambda content: None)
    dead = Error(0, "<class 'ray.exceptions.ActorDiedError'>:<'The actor died unexpectedly'>")
    assert find_problem(Message(dead, reply_to=sent), sent)[0] == "actor-died"
    gone = Error(0, "<class 'ray.exceptions.ActorUnavailableError'>:<'The actor is unavailable: its node is gone'>")
    assert find_problem(Message(gone, reply_to=sent), sent)[0] == "actor-died"
    full = Error(0, "<class 'ray.exceptions.OutOfDiskError'>:<'Local disk is full, RayTaskError or not'>")
    assert "disk is full" in find_problem(Message(full, reply_to=sent), sent)[1], "what Ray says is handed on"
    raised = Error(0, "<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'ray::run() Message: too large'>")
    assert find_problem(Message(raised, reply_to=sent), sent) == ("other", "too large'>")
    own = Error(2, "ValueError: ActorDiedError")
    assert find_problem(Message(own, reply_to=sent), sent)[0] == "client-error", "a client cannot claim it"


def test_long_reasons_are_shortened():
    sent, _ = message_and_reply(lambda content: None)
    long = "\x1b[36mray::ClientAppActor.run()\x1b[39m\n" * 1000 + "ValueError: the disk\n is gone"
    _, reason = find_problem(Message(Error(2, long), reply_to=sent), sent)
    assert reason.startswith("ray::ClientAppActor.run() ray::")
    assert reason.endswith("run() ValueError: the disk is gone"), "of a traceback the end tells most"
    assert len(reason) <= 303
    assert "\x1b" not in reason


def held(values):
    return DeviceArray(torch.tensor(values))


def test_device_array_equals_sent_bytes():
    plain = join([np.array([1, 2, 3], np.float32)], np.float32)
    array = held([1.0, 2.0, 3.0])
    assert (array.dtype, array.shape, array.stype, array.data) == (plain.dtype, plain.shape, plain.stype, plain.data)
    assert array.numpy().tolist() == [1, 2, 3]
    assert size(array) == size(plain) == len(plain.data)


def test_codec_keeps_tensors():
    layout = Layout.of({"w": np.zeros((1, 2), np.float32), "n": np.zeros((), np.int64), "v": np.zeros(1, np.float32)})
    pieces, counters = [torch.tensor([1.0, 0.1]), np.array([3], np.float32)], np.array([7])
    record = Codec(layout).encode(Parts(pieces, [counters]))
    model = Codec(layout).decode(record)
    assert model.floats is record["floats"].tensor
    assert (model.floats.tolist(), model.ints.tolist()) == ([1, pytest.approx(0.1), 3], [7])
    narrow = Codec(layout, wire="float16")
    floats = narrow.decode(narrow.encode(Parts(pieces, [counters]))).floats
    assert floats.tolist() == [1, float(np.float16(0.1)), 3]
    with pytest.raises(RecordError, match=r"have 2 \+ 1 values, expected 3 \+ 1"):
        Codec(layout).decode(Codec(layout).encode(Parts(pieces[:1], [counters])))


@pytest.mark.parametrize(
    ("values", "kind"), [([1.0, 2.0], None), ([1.0, float("nan")], "not-finite"), ([1.0], "malformed")]
)
def test_tensor_replies_are_checked(values, kind):
    sent = Message(RecordDict({"arrays": ArrayRecord({"floats": Array(np.zeros(2, np.float32))})}), 1, "train")
    reply = Message(
        RecordDict({"arrays": ArrayRecord({"floats": held(values)}), "metrics": MetricRecord({"num-examples": 1})}),
        reply_to=sent,
    )
    assert (find_problem(reply, sent) or (None,))[0] == kind
