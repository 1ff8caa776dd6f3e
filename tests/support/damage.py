"""Ways to damage a good reply, drawn by Hypothesis."""

import io

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import strategies as st

MAX = float(np.finfo(np.float32).max)
SUPERLINK = 1  # the number of its node


def npy(descr, order, shape, body, more=b""):
    """The bytes of an .npy file with any claims in its head."""
    head = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': ({shape}), }} \n".encode() + more
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + body


def npy_bytes(values, **how):
    file = io.BytesIO()
    np.lib.format.write_array(file, values, **how)
    return file.getvalue()


# Hypothesis tries words that it finds in the code, and one of Ray's exceptions stops a run.
WORDS = st.text().filter(lambda text: "ray.exceptions" not in text) | st.sampled_from(
    ["two\nlines\r\n\x85", "[/bold] [red]", "\x1b[2J", "x" * 5000, ""]
)
DESCRIPTIONS = st.sampled_from(
    ["<f4", "|f4", ">f4", "<f2", "<f8", "<i8", "<i4", "|b1", "<c8", "|O", "<U3", "<f3", "<f16"]
)
DTYPES = st.sampled_from(["float32", "float16", "float64", "int64", "object", "", "float32\nforged: line"]) | WORDS
EXTENTS = st.integers(0, 7) | st.sampled_from([2**31, 2**63, 10**30, 10**4400])
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, 5, -1, 0.5, 5e-324, 1e15, 2**63, -(2**80), 10**400])
NUMBER_LISTS = st.lists(st.integers(), max_size=3) | st.lists(st.floats(), max_size=3)
# What the server reports itself.
SERVERS_OWN = [
    "round", "seconds", "bad", "clients", "replies", "failures", "failed", "failures-by-kind", "similarity", "spread",
    "slots", "recombination", "bytes-down", "bytes-up", "test-loss", "test-accuracy", "slot-accuracies",
    "evaluation-seconds",
]  # fmt: skip
NAMES = st.sampled_from(["train-loss", "loss", "lost-state", *SERVERS_OWN]) | st.text(max_size=5)
ODD = st.sampled_from([np.nan, np.inf, -np.inf, MAX, -MAX, 1e30, 65504, 1e-45, -0.0])


def stating(array, data):
    """An array that states what it did, but holds other bytes."""
    return Array(array.dtype, array.shape, array.stype, data)


def noise(draw, array):
    return stating(array, draw(st.binary(max_size=200)))


def cut(draw, array):
    return stating(array, array.data[: draw(st.integers(0, len(array.data) - 1))])


def extended(draw, array):
    return stating(array, array.data + draw(st.binary(min_size=1, max_size=40)))


def flipped(draw, data, low, high):
    bits = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        bits[draw(st.integers(low, high))] ^= 1 << draw(st.integers(0, 7))
    return bytes(bits)


def flipped_head(draw, array):
    return stating(array, flipped(draw, array.data, 0, len(array.data) - array.numpy().nbytes - 1))


def flipped_body(draw, array):
    return stating(array, flipped(draw, array.data, len(array.data) - array.numpy().nbytes, len(array.data) - 1))


def false_type(draw, array):
    return claiming(draw, array, draw(DESCRIPTIONS), "False", array.shape)


def false_order(draw, array):
    return claiming(draw, array, array.numpy().dtype.str, draw(st.sampled_from(["True", "None", "0"])), array.shape)


def false_shape(draw, array):
    same_size = st.sampled_from([array.shape[::-1], (1, *array.shape), (*array.shape, 1), (array.numpy().size,)])
    shape = draw(same_size | st.lists(EXTENTS, max_size=4))
    return claiming(draw, array, array.numpy().dtype.str, "False", shape)


def claiming(draw, array, descr, order, shape):
    """The same body under another head; the array may state the same shape as that, or the one that was asked for."""
    sizes = "".join(f"{'9' * 4400 if size == 10**4400 else size}, " for size in shape)
    data = npy(descr, order, sizes, array.data[len(array.data) - array.numpy().nbytes :])
    stated = tuple(shape) if draw(st.booleans()) else array.shape
    return Array(array.dtype, stated, array.stype, data)


def misstated(draw, array):
    shape = st.just(array.shape) | st.lists(st.integers(-3, 9) | st.just(2**63), max_size=3)
    return Array(draw(DTYPES | st.just(array.dtype)), tuple(draw(shape)), draw(WORDS), array.data)


def of_other_type(draw, array):
    return Array(np.zeros(array.shape, draw(st.sampled_from(["f2", "f4", "f8", "i8", "i4", "?", "c8", ">f4"]))))


def of_other_shape(draw, array):
    return Array(np.zeros(draw(st.lists(st.integers(0, 4), max_size=3)), array.dtype))


def of_no_length(draw, array):
    return Array(np.zeros(0, array.dtype))


def transposed(draw, array):
    return Array(array.numpy().T)


def by_columns(draw, array):
    return Array(np.asfortranarray(array.numpy()))


def in_another_form(draw, array):
    values = array.numpy()
    forms = [
        npy_bytes(np.array([values], object), allow_pickle=True),
        npy_bytes(values, version=(2, 0)),
        npy_bytes(values, version=(3, 0)),
        npy_bytes(values.astype(values.dtype.newbyteorder(">"))),
        npy_bytes(np.zeros(2, [("a", "f4")])),
        str(values).encode(),
        npy(values.dtype.str, "False", "".join(f"{size}, " for size in values.shape), values.tobytes(), b"junk\n"),
    ]
    return stating(array, draw(st.sampled_from(forms)))


def of_odd_values(draw, array):
    values = array.numpy().copy()
    odd = draw(ODD if values.dtype.kind == "f" else st.sampled_from([2**63 - 1, -(2**63), 0, -1]))
    with np.errstate(over="ignore"):
        values[... if draw(st.booleans()) else (0,) * values.ndim] = odd
    return Array(values)


def missing_array(draw, content):
    content["arrays"].pop(draw(st.sampled_from(sorted(content["arrays"]))))


def another_array(draw, content):
    content["arrays"][draw(WORDS)] = Array(np.zeros(2, np.float32))


def renamed_array(draw, content):
    name = draw(st.sampled_from(sorted(content["arrays"])))
    content["arrays"][draw(WORDS)] = content["arrays"].pop(name)


def no_array(draw, content):
    content["arrays"].clear()


def arrays_in_another_order(draw, content):
    taken = content.pop("arrays")
    content["arrays"] = ArrayRecord(dict(reversed(taken.items())))


def odd_record(draw, names):
    records = [
        ConfigRecord({}),
        ConfigRecord(dict.fromkeys(names, b"\x00")),
        ConfigRecord(dict.fromkeys(names, 5)),
        MetricRecord({}),
        MetricRecord(dict.fromkeys(names, 5)),
        ArrayRecord({}),
        ArrayRecord({name: Array(np.ones(())) for name in names}),
    ]
    return draw(st.sampled_from(records))


def another_record(draw, content):
    content[draw(WORDS)] = odd_record(draw, draw(st.sampled_from([["floats"], ["num-examples"]])))


def missing_record(draw, content):
    content.pop(draw(st.sampled_from(["arrays", "metrics"])))


def renamed_record(draw, content):
    name = draw(st.sampled_from(["arrays", "metrics"]))
    content[draw(WORDS)] = content.pop(name)


def record_of_another_kind(draw, content):
    name = draw(st.sampled_from(["arrays", "metrics"]))
    content[name] = odd_record(draw, list(content.pop(name)))


def swapped_records(draw, content):
    arrays, metrics = content.pop("arrays"), content.pop("metrics")
    content["arrays"], content["metrics"] = metrics, arrays


def no_record(draw, content):
    content.clear()


def odd_examples(draw, content):
    content["metrics"]["num-examples"] = draw(NUMBERS | NUMBER_LISTS)


def odd_metrics(draw, content):
    for name, value in draw(st.dictionaries(NAMES, NUMBERS | NUMBER_LISTS, max_size=4)).items():
        content["metrics"][name] = value


def missing_metric(draw, content):
    content["metrics"].pop(draw(st.sampled_from(sorted(content["metrics"]))))


OF_AN_ARRAY = [
    noise, cut, extended, flipped_head, flipped_body, false_type, false_order, false_shape, misstated, of_other_type,
    of_other_shape, of_no_length, transposed, by_columns, in_another_form, of_odd_values,
]  # fmt: skip
OF_THE_CONTENT = [
    missing_array, another_array, renamed_array, no_array, arrays_in_another_order, another_record, missing_record,
    renamed_record, record_of_another_kind, swapped_records, no_record, odd_examples, odd_metrics, missing_metric,
]  # fmt: skip


def change(draw, content, how):
    """Make a good reply into something else."""
    if how in OF_THE_CONTENT:
        how(draw, content)
        return
    name = draw(st.sampled_from(sorted(content["arrays"])))
    content["arrays"][name] = how(draw, content["arrays"][name])


def errors(draw):
    return Error(draw(st.integers(-2, 20) | st.integers()), draw(st.none() | WORDS))


def replies_of(draw, message, honest, others):
    """Draw what one client sends: usually one reply, perhaps none, two, or one to a message of another."""
    act = draw(st.sampled_from(["honest", "honest", *["change"] * 4, "error", "silent", "twice", "stray"]))
    if act == "honest":
        return [honest]
    if act == "silent":
        return []
    if act == "error":
        error = Message(errors(draw), reply_to=message)
        if draw(st.booleans()):  # the SuperLink reports it, not the node
            error.metadata.__dict__["_src_node_id"] = SUPERLINK
        return [error]
    if act == "change":
        change(draw, honest.content, draw(st.sampled_from(OF_AN_ARRAY) | st.sampled_from(OF_THE_CONTENT)))
        return [honest]
    if act == "twice":
        again = RecordDict(dict(honest.content.items()))
        return [honest, Message(draw(st.sampled_from([again, RecordDict(), errors(draw)])), reply_to=message)]
    content = draw(st.sampled_from([honest.content, RecordDict(), errors(draw)]))
    if draw(st.booleans()):
        return [Message(content, reply_to=draw(st.sampled_from(others)))]
    stranger = draw(st.sampled_from([message.metadata.dst_node_id, SUPERLINK]))
    return [honest, Message(content, reply_to=Message(RecordDict(), stranger, "train"))]


BYTES = [0, 1, 0x7F, 0x80, 0xFF, *b' ,"{[']
SIZES = [0, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 10**12]
TOKENS = [b"9" * 13, b"-1", b"1e400", b"9" * 5000, b"0", b"null", b"[]", b"nan", b"99", b'"x"', b"{}"]


def damaged(rng, data):
    """The bytes of a file after one to sixteen changes, more often near its ends, where heads and indices are."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        size = len(changed)
        if not size:
            changed += rng.randbytes(1)
            continue
        near = int(rng.expovariate(1 / 40))
        at = rng.choice([rng.randrange(size), rng.randrange(size), min(size - 1, near), max(0, size - 1 - near)])
        digits = [place for place, byte in enumerate(changed[:4000]) if 48 <= byte <= 57]
        match rng.randrange(9):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at] = rng.choice(BYTES)
            case 2:
                del changed[rng.randrange(size) :]
            case 3:
                del changed[at : at + rng.randrange(1, 9)]
            case 4:
                changed[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 5:
                changed[at : at + 8] = rng.choice(SIZES).to_bytes(8, rng.choice(["little", "big"]))
            case 6:
                changed[at:at] = changed[at : at + rng.randrange(1, 64)]
            case 7 if digits:
                place = rng.choice(digits)
                changed[place : place + 1] = rng.choice(TOKENS)
            case _:
                changed[at] = rng.randrange(256)
    return bytes(changed)
