"""Whatever clients reply, the server goes on, and only good replies change anything.

Every case is judged by NumPy's own reader, not by how it was damaged: a reply that is exactly as Flower writes it,
with finite numbers, must be taken as it is; one that NumPy cannot read as the model that was sent must leave its
slot as it was dealt.
"""

import gc
import io
import json
import logging
import weakref
from collections import Counter

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from fedmr_flwr import FedAvg, FedMR
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.errors import BadRoundError
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server import rounds as loop
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.in_process import InProcessGrid
from fedmr_flwr.wire.grids.roster import RosterGrid

K, LAST = 4, 3
MAX = float(np.finfo(np.float32).max)
LAYOUT = Layout.of(
    {
        "conv.weight": np.zeros((2, 3), np.float32),
        "conv.half": np.zeros(3, np.float16),
        "bn.running_mean": np.zeros(2, np.float32),
        "bn.num_batches_tracked": np.zeros((), np.int64),
        "head.weight": np.zeros((2, 2), np.float32),
        "head.bias": np.zeros(2, np.float32),
    }
)
CODECS = {True: Codec(LAYOUT), False: Codec(LAYOUT, packed=False)}
KINDS = {
    "client-error", "expired", "node-lost", "no-reply", "duplicate", "unasked", "malformed", "not-finite",
    "no-examples", "outlier", "other",
}  # fmt: skip


class Grid(InProcessGrid):
    """Carries messages to honest clients; `meddle(messages, replies)` returns what comes back instead."""

    def __init__(self, codec):
        app = ClientApp()
        self.meddle = None

        @app.query()
        def query(message, context):
            number = MetricRecord({"client": context.node_config["partition-id"]})
            return Message(RecordDict({"metrics": number}), reply_to=message)

        @app.train()
        def train(message, context):
            client, number = context.node_config["partition-id"], message.content["config"]["server-round"]
            old = codec.decode(message.content["arrays"])
            step = np.random.default_rng([number, client]).integers(-3, 4, LAYOUT.size).astype(np.float32)
            arrays = codec.encode(Parts([old.floats * np.float32(0.5) + step], [old.ints + 1]))
            metrics = MetricRecord({"num-examples": client + 1, "train-loss": 0.5})
            return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

        super().__init__(app, K)

    def send_and_receive(self, messages, *, timeout=None):
        replies = super().send_and_receive(messages, timeout=timeout)
        return self.meddle(messages, replies) if self.meddle else replies


class Run:
    """A server whose round 1 is honest, whose round 2 can be meddled with, and whose round 3 is honest."""

    def __init__(self, folder, packed=True, guard=None, kind=FedMR, **options):
        self.codec, self.guard = CODECS[packed], guard
        self.inner = Grid(self.codec)
        self.grid = RosterGrid(self.inner, K, guard=guard)
        self.strategy = kind(clients_per_round=K, layout=LAYOUT if packed else None, **options)
        self.arrays = self.codec.encode(Parts([np.zeros(LAYOUT.size, np.float32)], [np.zeros(1, np.int64)]))
        self.folder = RunFolder(folder)
        self.folder.metrics.unlink(missing_ok=True)
        self.display = Display(LAST, Console(file=io.StringIO()))
        self.rows = []
        self.round(1)

    def round(self, number):
        settings = Settings(rounds=number, max_bad_rounds=1)
        self.arrays = loop.run(
            settings, self.strategy, self.grid, self.arrays, ConfigRecord(), lambda _: {}, self.report, number - 1
        )
        return self.rows[-1]

    def report(self, row, arrays, stops):
        assert not stops
        self.rows.append(row)
        self.folder.add_row(row)
        self.display.show(row)

    @property
    def population(self):
        return [content_of(model) for model in self.strategy.population]


def content_of(model):
    return model.floats.dtype, model.floats.tobytes(), model.ints.dtype, model.ints.tobytes()


# What may come back


def npy(descr, order, shape, body, more=b""):
    """The bytes of an .npy file with any claims in its head."""
    head = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': ({shape}), }} \n".encode() + more
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + body


def saved(values, **how):
    file = io.BytesIO()
    np.lib.format.write_array(file, values, **how)
    return file.getvalue()


# Hypothesis tries words that it finds in the code, and "ActorDiedError" stops a run under Ray: tests/test_resume.py.
WORDS = st.text().filter(lambda text: "ActorDied" not in text) | st.sampled_from(
    ["two\nlines\r\n\x85", "[/bold] [red]", "\x1b[2J", "x" * 5000, ""]
)
DESCRIPTIONS = st.sampled_from(
    ["<f4", "|f4", ">f4", "<f2", "<f8", "<i8", "<i4", "|b1", "<c8", "|O", "<U3", "<f3", "<f16"]
)
DTYPES = st.sampled_from(["float32", "float16", "float64", "int64", "object", "", "float32\nforged: line"]) | WORDS
EXTENTS = st.integers(0, 7) | st.sampled_from([2**31, 2**63, 10**30, 10**4400])
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, 5, -1, 0.5, 5e-324, 1e15, 2**63, -(2**80), 10**400])
NUMBER_LISTS = st.lists(st.integers(), max_size=3) | st.lists(st.floats(), max_size=3)
SERVERS_OWN = [
    "round", "seconds", "bad", "clients", "replies", "failures", "failed", "failures-by-kind", "similarity", "spread",
    "slots", "recombination", "test-loss", "test-accuracy", "slot-accuracies", "evaluation-seconds",
]  # fmt: skip
NAMES = st.sampled_from(["train-loss", "loss", *SERVERS_OWN]) | st.text(max_size=5)
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
        saved(np.array([values], object), allow_pickle=True),
        saved(values, version=(2, 0)),
        saved(values, version=(3, 0)),
        saved(values.astype(values.dtype.newbyteorder(">"))),
        saved(np.zeros(2, [("a", "f4")])),
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
        return [Message(errors(draw), reply_to=message)]
    if act == "change":
        change(draw, honest.content, draw(st.sampled_from(OF_AN_ARRAY) | st.sampled_from(OF_THE_CONTENT)))
        return [honest]
    if act == "twice":
        again = RecordDict(dict(honest.content.items()))
        return [honest, Message(draw(st.sampled_from([again, RecordDict(), errors(draw)])), reply_to=message)]
    content = draw(st.sampled_from([honest.content, RecordDict(), errors(draw)]))
    if draw(st.booleans()):
        return [Message(content, reply_to=draw(st.sampled_from(others)))]
    stranger = draw(st.sampled_from([message.metadata.dst_node_id, 1]))
    return [honest, Message(content, reply_to=Message(RecordDict(), stranger, "train"))]


# What should come of it


def read(array):
    """Return an array as NumPy reads it, and whether it is exactly as Flower writes it; None if it is neither."""
    file = io.BytesIO(array.data)
    try:
        with np.errstate(all="ignore"):
            values = np.lib.format.read_array(file, allow_pickle=False)
    except Exception:  # NumPy's reader fails in many ways
        return None
    if file.read() or (values.dtype.name, values.shape) != (array.dtype, tuple(array.shape)):
        return None
    return values, saved(values) == array.data


def judged(reply, sent):
    """Return the kinds of failure that a reply may count as, none if it must be taken, and its arrays."""
    if not reply.has_content():
        known = {1: "client-error", 2: "client-error", 3: "expired", 4: "expired", 5: "node-lost", 8: "client-error"}
        return {known.get(reply.error.code, "other")}, None
    metrics, arrays, expected = (reply.content.get("metrics"), reply.content.get("arrays"), sent.content["arrays"])
    kinds = set()
    examples = metrics.get("num-examples") if isinstance(metrics, MetricRecord) else None
    if isinstance(examples, list | None) or not -1e15 < examples < 1e15:
        kinds.add("malformed")
    elif examples < 1:
        kinds.add("no-examples")
    if not isinstance(arrays, ArrayRecord) or set(arrays) != set(expected):
        return {*kinds, "malformed"}, None
    found = {name: read(array) for name, array in arrays.items()}
    for name, its in found.items():
        if its is None or (its[0].dtype, its[0].shape) != (expected[name].numpy().dtype, tuple(expected[name].shape)):
            kinds.add("malformed")
        elif not np.isfinite(its[0]).all():
            kinds.add("not-finite")
    if kinds:
        return kinds, None
    exact = all(canonical for _, canonical in found.values())
    return set() if exact else {None, "malformed"}, {name: values for name, (values, _) in found.items()}


def packed_content(arrays, packed):
    if packed:
        return np.dtype(np.float32), arrays["floats"].tobytes(), np.dtype(np.int64), arrays["ints"].tobytes()
    return content_of(LAYOUT.pack(arrays))


def too_long(lengths, guard):
    """Which updates are more than `guard` times as long as the median."""
    middle = np.median(list(lengths.values())) if lengths else 0
    return {at for at, length in lengths.items() if guard and middle and length > guard * middle}


def update_length(arrays, sent):
    steps = [
        (np.asarray(arrays[name], np.float64) - np.asarray(before.numpy(), np.float64)).ravel()
        for name, before in sent.content["arrays"].items()
        if arrays[name].dtype.kind == "f"
    ]
    return np.linalg.norm(np.concatenate(steps))


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    """Hundreds of rounds of warnings help nobody."""
    logging.getLogger("fedmr_flwr").setLevel(logging.ERROR)
    yield
    logging.getLogger("fedmr_flwr").setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


ALONE = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TOGETHER = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
both_codecs = pytest.mark.parametrize("packed", [True, False], ids=["packed", "per tensor"])


@pytest.mark.slow
@pytest.mark.parametrize("guard", [None, 3.0])
@both_codecs
@TOGETHER
@given(data=st.data())
def test_no_replies_whatsoever_crash_the_server_or_change_a_slot(folder, packed, guard, data):
    def meddle(messages, replies):
        found = [
            reply
            for message, honest in zip(messages, replies, strict=True)
            for reply in replies_of(data.draw, message, honest, messages)
        ]
        return [found[at] for at in data.draw(st.permutations(range(len(found))))]

    check_a_round(Run(folder, packed, guard), meddle)


@pytest.mark.parametrize("how", [*OF_AN_ARRAY, *OF_THE_CONTENT], ids=lambda how: how.__name__)
@ALONE
@given(data=st.data(), packed=st.booleans())
def test_nor_does_one_kind_of_damage_to_all_replies(folder, how, packed, data):
    def meddle(messages, replies):
        for reply in replies:
            change(data.draw, reply.content, how)
        return replies

    check_a_round(Run(folder, packed), meddle)


@pytest.mark.parametrize("guard", [None, 3.0])
@both_codecs
@pytest.mark.parametrize("value", [MAX, 1e4, -1e4])
def test_a_guard_refuses_the_one_that_moved_too_far(folder, packed, guard, value):
    def meddle(messages, replies):
        model = run.codec.decode(replies[2].content["arrays"])
        with np.errstate(over="ignore"):
            replies[2].content["arrays"] = run.codec.encode(Parts([np.full_like(model.floats, value)], [model.ints]))
        return replies[1:]

    run = Run(folder, packed, guard)
    check_a_round(run, meddle)
    # Where tensors travel by themselves, one is float16, for which the largest float32 is too large.
    refused = "not-finite" if value == MAX and not packed else "outlier" if guard else None
    assert [failed["kind"] for failed in run.rows[1]["failed"]] == ["no-reply", *[refused] * bool(refused)]


def check_a_round(run, meddle):
    """Let round 2 be meddled with and insist on everything that must hold after it."""
    before, arrays_before = run.population, {name: array.data for name, array in run.arrays.items()}
    dealt, exchanged = [], []

    def watched(messages, replies):
        dealt.extend(content_of(run.codec.decode(message.content["arrays"])) for message in messages)
        exchanged[:] = messages, meddle(messages, replies)
        return exchanged[1]

    run.inner.meddle = watched
    row = run.round(2)
    run.inner.meddle = None

    # What each message should have come to, whoever answered it.
    messages, replies = exchanged
    expected, contents, lengths = [], {}, {}
    for at, message in enumerate(messages):
        group = [reply for reply in replies if reply.metadata.reply_to_message_id == message.metadata.message_id]
        if len(group) != 1:
            expected.append({"duplicate" if group else "no-reply"})
            continue
        kinds, arrays = judged(group[0], message)
        expected.append(kinds)
        if arrays is not None:
            contents[at] = packed_content(arrays, run.codec.packed)
            lengths[at] = update_length(arrays, message)
    known = {message.metadata.message_id for message in messages}
    strays = [reply for reply in replies if reply.metadata.reply_to_message_id not in known]

    failures = run.grid.exchange.failures
    assert all(failure.kind in KINDS for failure in failures)
    assert all(len(failure.reason.splitlines()) <= 1 for failure in failures), "one line"
    assert all(len(failure.reason) < 500 for failure in failures), "and not a long one"
    asked = [failure for failure in failures if failure.kind != "unasked"]
    order = [run.grid.get_node_ids().index(message.metadata.dst_node_id) for message in messages]
    kinds = {order.index(failure.client): failure.kind for failure in asked}
    assert list(kinds) == sorted(kinds), "in the order of the messages"
    assert len(kinds) == len(asked)
    assert len(failures) - len(asked) == len(strays)
    taken = [at for at in range(K) if at not in kinds]
    assert row["replies"] == run.grid.exchange.replies == len(taken)

    compared = {at: length for at, length in lengths.items() if kinds.get(at) in (None, "outlier")}
    long = too_long(compared, run.guard)
    for at, allowed in enumerate(expected):
        kind = kinds.get(at)
        if at in long or kind == "outlier":
            assert kind == "outlier"
            assert at in long
        else:
            assert kind in (allowed or {None}), (kind, allowed)

    # Nothing but what was taken has changed.
    if taken:
        assert "bad" not in row
        expected_population = [contents[at] if at in taken else dealt[at] for at in range(K)]
        assert run.population == expected_population
        assert (run.strategy._sent, list(run.strategy._dealt)) == ([], []), "the round's messages are gone"
    else:
        assert row["bad"] is True
        assert run.population == before
        assert {name: array.data for name, array in run.arrays.items()} == arrays_before
    assert np.isfinite(run.codec.decode(run.arrays).floats).all()

    # The account of the round is the server's, and it can be written and read.
    saved_row = run.folder.read_rows()[-1]
    for name in ("round", "replies", "failures"):
        assert saved_row[name] == row[name]
    assert row["round"] == 2
    assert row["failures"] == len(failures)
    assert tuple(row["clients"]) == tuple(order)
    assert isinstance(row["seconds"], float)
    assert json.loads(json.dumps(row.get("failures-by-kind", {}))) == Counter(f.kind for f in failures)
    assert [failed["kind"] for failed in row.get("failed", [])] == [failure.kind for failure in failures]

    # And the federation goes on.
    assert run.round(LAST)["replies"] >= K // 2
    assert np.isfinite(run.codec.decode(run.arrays).floats).all()


@pytest.mark.parametrize(
    "values",
    [(MAX, MAX, MAX, -MAX), (MAX, 0, 0, 0), (MAX, -MAX, 1e30, 1e-45), (-MAX, -MAX, -MAX, -MAX)],
    ids=["one against all", "one", "all kinds", "all"],
)
@pytest.mark.parametrize(
    ("kind", "options"),
    [(FedMR, {}), (FedMR, {"weighting": "examples"}), (FedAvg, {})],
    ids=["fedmr", "by examples", "fedavg"],
)
def test_the_largest_numbers_are_numbers_too(folder, kind, options, values):
    run = Run(folder, kind=kind, **options)

    def meddle(messages, replies):
        for value, reply in zip(values, replies, strict=True):
            reply.content["arrays"]["floats"] = Array(np.full(LAYOUT.size, value, np.float32))
        return replies

    run.inner.meddle = meddle
    row = run.round(2)
    assert row["replies"] == K
    model = run.codec.decode(run.arrays).floats
    assert (model >= min(values)).all()
    assert (model <= max(values)).all()
    if kind is FedMR:
        assert [population[1] for population in run.population] == [
            np.full(LAYOUT.size, v, "f4").tobytes() for v in values
        ]
        off = np.array(values, np.float64) - model[0]
        assert row["spread"] == pytest.approx([np.sqrt(np.mean(off**2))] * len(run.strategy.units), rel=1e-5)
        assert -1 <= row["similarity"] <= 1
    run.inner.meddle = None
    assert run.round(LAST)["replies"] == K


@pytest.mark.parametrize(
    "losses",
    [(np.inf, -np.inf, 1.0, 1.0), (np.nan, 0.0, 0.0, 0.0), (1.7e308,) * 4, (-1.7e308, 1.7e308) * 2, (2**63 - 1,) * 4],
    ids=str,
)
def test_a_metric_may_have_any_value(folder, losses):
    run = Run(folder)

    def meddle(messages, replies):
        for loss, reply in zip(losses, replies, strict=True):
            reply.content["metrics"]["train-loss"] = loss
        return replies

    run.inner.meddle = meddle
    row = run.round(2)
    assert row["replies"] == K
    assert isinstance(row["train-loss"], float)
    assert run.folder.read_rows()[-1]["round"] == 2


@pytest.mark.parametrize(
    "name",
    SERVERS_OWN,
)
@pytest.mark.parametrize("kind", [FedMR, FedAvg])
def test_a_clients_metric_cannot_pass_for_the_servers_own(folder, kind, name):
    run = Run(folder, kind=kind)
    honest = run.rows[-1]

    def meddle(messages, replies):
        for reply in replies:
            reply.content["metrics"][name] = 0.125
        return replies

    run.inner.meddle = meddle
    row = run.round(2)
    assert row.get(name) != 0.125
    assert set(row) == set(honest)
    assert row["round"] == 2


def test_with_no_good_reply_the_round_is_bad_and_nothing_changes(folder):
    run = Run(folder)
    before = run.population
    run.inner.meddle = lambda messages, replies: []
    messages = run.strategy.configure_train(2, run.arrays, ConfigRecord(), run.grid)
    with pytest.raises(BadRoundError, match="no client gave a good reply"):
        run.grid.send_and_receive(messages)
    assert run.population == before


@both_codecs
def test_nothing_that_was_refused_is_kept(folder, packed):
    run = Run(folder, packed)
    alive = []

    def meddle(messages, replies):
        for reply in replies[:2]:
            reply.content["metrics"]["num-examples"] = 0
        stray = Message(RecordDict(), reply_to=Message(RecordDict(), 1, "train"))
        alive.extend(weakref.ref(thing) for thing in (*messages, *replies, stray))
        alive.extend(weakref.ref(thing.content) for thing in (*messages, *replies, stray))
        return [*replies, replies[3], stray]

    run.inner.meddle = meddle
    assert run.round(2)["failures-by-kind"] == {"duplicate": 1, "no-examples": 2, "unasked": 1}
    gc.collect()
    assert [thing() for thing in alive] == [None] * len(alive)
