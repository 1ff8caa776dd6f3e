"""Whatever clients reply, the server continues, and only good replies change anything.

Every case is judged by NumPy's own reader, not by how it was damaged: a reply that is exactly as Flower writes it,
with finite numbers, must be taken as it is; one that NumPy cannot read as the model that was sent must leave its
slot what was sent.
"""

import gc
import io
import logging
import weakref
from collections import Counter, defaultdict

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fedmr_flwr import FedAvg, FedMR
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server import rounds as loop
from fedmr_flwr.server.ledger import Ledger
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.foreign import metrics_of
from fedmr_flwr.wire.grids.in_process import InProcessGrid
from fedmr_flwr.wire.grids.roster import RosterGrid
from tests.support.damage import MAX, OF_AN_ARRAY, OF_THE_CONTENT, SERVERS_OWN, change, npy_bytes, replies_of

K, LAST = 4, 3
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
TRAINABLE = [entry for entry in LAYOUT.entries if not entry.buffer]
BUFFERS = [entry for entry in LAYOUT.entries if entry.buffer and not entry.integer]
KINDS = {
    "client-error", "expired", "node-lost", "no-reply", "duplicate", "unsolicited", "malformed", "not-finite",
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
            arrays = codec.encode(Packed(old.floats * np.float32(0.5) + step, old.ints + 1))
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
        self.grid, self.ledger = RosterGrid(self.inner, K), Ledger(K)
        self.strategy = kind(clients_per_round=K, layout=LAYOUT if packed else None, guard=guard, **options)
        self.arrays = self.codec.encode(Packed(np.zeros(LAYOUT.size, np.float32), np.zeros(1, np.int64)))
        self.folder = RunFolder(folder)
        self.folder.metrics.unlink(missing_ok=True)
        self.display = Display(LAST, Console(file=io.StringIO()))
        self.rows = []
        self.round(1)

    def round(self, number):
        settings = Settings(rounds=number, max_bad_rounds=1)
        self.arrays = loop.run(
            settings, self.strategy, self.grid, self.ledger, self.arrays, ConfigRecord(), lambda *_: {}, self.report,
            number - 1,
        )  # fmt: skip
        return self.rows[-1]

    def report(self, row, arrays, stops):
        assert not stops
        self.rows.append(row)
        self.folder.add_row(row)
        self.display.show(row)

    @property
    def population(self):
        return [content_of(model) for model in self.strategy.state.models]


def contents(record):
    return {name: array.data for name, array in record.items()}


def content_of(model):
    return model.floats.dtype, model.floats.tobytes(), model.ints.dtype, model.ints.tobytes()


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
    return values, npy_bytes(values) == array.data


def verdict(reply, sent):
    """Return the kinds of failure that a reply may count as, none if it must be taken, and its arrays."""
    if not reply.has_content():
        known = {
            1: "client-error",
            2: "client-error",
            3: "expired",
            4: "expired",
            5: "node-lost",
            8: "client-error",
            1000: "malformed",
        }
        return {known.get(reply.error.code, "other")}, None
    expected = sent.content["arrays"]
    foreign = "floats" not in expected  # as in other people's apps, whose clients name records as they like
    content = in_our_names(reply.content) if foreign else reply.content
    metrics, arrays = content.get("metrics"), content.get("arrays")
    kinds = {"malformed"} if set(content) - {"arrays", "metrics"} else set()
    if isinstance(metrics, MetricRecord):
        kinds = kinds.union(*(doubts(name, value) for name, value in metrics.items()))
    examples = metrics.get("num-examples") if isinstance(metrics, MetricRecord) else None
    if isinstance(examples, list | None) or not -1e15 < examples < 1e15:
        kinds.add("malformed")
    elif examples < 1:
        kinds.add("no-examples")
    if not isinstance(arrays, ArrayRecord) or set(arrays) != set(expected):
        return {*kinds, "malformed"}, None
    found = {name: read(array) for name, array in arrays.items()}
    if foreign:
        found = {name: its and in_type_of(expected[name].numpy(), *its) for name, its in found.items()}
    for name, its in found.items():
        if its is None or (its[0].dtype, its[0].shape) != (expected[name].numpy().dtype, tuple(expected[name].shape)):
            kinds.add("malformed")
        elif not np.isfinite(its[0]).all():
            kinds.add("not-finite")
    if kinds:
        return kinds, None
    exact = all(canonical for _, canonical in found.values())
    return set() if exact else {None, "malformed"}, {name: values for name, (values, _) in found.items()}


def in_our_names(content):
    """The record of either kind that is meant: by its name, or because it is the only one."""
    found = {}
    for name, records in (("arrays", content.array_records), ("metrics", content.metric_records)):
        if name in records or len(records) == 1:
            found[name] = records.get(name, next(iter(records.values())))
    return found


def in_type_of(expected, values, exact):
    """Numbers of another type are converted, if they are numbers of this machine, and finite for an integer type."""
    numbers = values.dtype.kind in "fiub" and values.dtype.isnative
    if not numbers or (expected.dtype.kind != "f" and not np.isfinite(values).all()):
        return values, exact
    with np.errstate(over="ignore"):
        rounded = np.rint(values) if expected.dtype.kind in "iu" and values.dtype.kind == "f" else values
        return rounded.astype(expected.dtype), exact


def doubts(name, value):
    """Why a metric is not believed: every reason, because the first one of several numbers decides."""
    values = value if isinstance(value, list) else [value]
    endless = [isinstance(one, float) and not np.isfinite(one) for one in values]
    huge = [abs(one) >= 1e15 for one, without_end in zip(values, endless, strict=True) if not without_end]
    found = {"not-finite"} if any(endless) else set()
    return found | {"malformed"} if any(huge) or not name.isprintable() else found


def packed_content(arrays, packed):
    if packed:
        return np.dtype(np.float32), arrays["floats"].tobytes(), np.dtype(np.int64), arrays["ints"].tobytes()
    return content_of(LAYOUT.pack(arrays))


def beyond_belief(losses):
    """Whose loss is more than a thousand times the median, or a list where others' are numbers."""
    numbers = {at: loss for at, loss in losses.items() if not isinstance(loss, list)}
    if not numbers:
        return set()
    usual = max(1.0, np.median([abs(loss) for loss in numbers.values()]))
    return {at for at, loss in losses.items() if at not in numbers or abs(loss) > 1000 * usual}


def too_long(lengths, guard):
    """Which updates are more than `guard` times as long as the median: of the weights, then of the buffers."""
    long = set()
    for which in (0, 1):
        left = {at: both[which] for at, both in lengths.items() if at not in long}
        middle = np.median(list(left.values())) if left else 0
        long |= {at for at, length in left.items() if guard and middle and length > guard * middle}
    return long


def update_lengths(arrays, sent, packed):
    """How far the trainable parameters and the buffers have moved."""
    return [distance_over(entries, arrays, sent, packed) for entries in (TRAINABLE, BUFFERS)]


def distance_over(entries, arrays, sent, packed):
    def flat(arrays):
        vectors = [arrays["floats"][entry.columns] if packed else arrays[entry.name].ravel() for entry in entries]
        return np.concatenate([vector.astype(np.float64) for vector in vectors])

    before = {name: array.numpy() for name, array in sent.content["arrays"].items()}
    return np.linalg.norm(flat(arrays) - flat(before))


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    """Hundreds of rounds of warnings help nobody."""
    logging.getLogger("fedmr_flwr").setLevel(logging.ERROR)
    yield
    logging.getLogger("fedmr_flwr").setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


ALONE = settings(max_examples=8)
TOGETHER = settings(max_examples=75)
both_codecs = pytest.mark.parametrize("packed", [True, False], ids=["packed", "per tensor"])


@pytest.mark.slow
@pytest.mark.parametrize("guard", [None, 3.0])
@both_codecs
@TOGETHER
@given(data=st.data())
def test_random_replies_never_crash(folder, packed, guard, data):
    def meddle(messages, replies):
        found = [
            reply
            for message, honest in zip(messages, replies, strict=True)
            for reply in replies_of(data.draw, message, honest, messages)
        ]
        return [found[at] for at in data.draw(st.permutations(range(len(found))))]

    check_a_round(Run(folder, packed, guard), meddle)


@pytest.mark.slow
@pytest.mark.parametrize("how", [*OF_AN_ARRAY, *OF_THE_CONTENT], ids=lambda how: how.__name__)
@ALONE
@given(data=st.data(), packed=st.booleans())
def test_no_kind_of_damage_crashes(folder, how, packed, data):
    def meddle(messages, replies):
        for reply in replies:
            change(data.draw, reply.content, how)
        return replies

    check_a_round(Run(folder, packed), meddle)


@pytest.mark.parametrize("guard", [None, 3.0])
@both_codecs
@pytest.mark.parametrize("value", [MAX, 1e4, -1e4])
def test_guard_refuses_long_updates(folder, packed, guard, value):
    def meddle(messages, replies):
        model = run.codec.decode(replies[2].content["arrays"])
        with np.errstate(over="ignore"):
            replies[2].content["arrays"] = run.codec.encode(Packed(np.full_like(model.floats, value), model.ints))
        return replies[1:]

    run = Run(folder, packed, guard)
    check_a_round(run, meddle)
    # Where tensors travel by themselves, one is float16, for which the largest float32 is too large.
    refused = "not-finite" if value == MAX and not packed else "outlier" if guard else None
    assert [failed["kind"] for failed in run.rows[1]["failed"]] == ["no-reply", *[refused] * bool(refused)]


def check_a_round(run, meddle):
    """Let round 2 be meddled with and check all that must hold after it."""
    before, arrays_before = run.population, contents(run.arrays)
    sent, exchanged = [], []

    def watched(messages, replies):
        sent.extend(content_of(run.codec.decode(message.content["arrays"])) for message in messages)
        exchanged[:] = messages, meddle(messages, replies)
        return exchanged[1]

    run.inner.meddle = watched
    row = run.round(2)
    run.inner.meddle = None
    messages, replies = exchanged
    expected, models, lengths, losses, strays = expectations(messages, replies, run.codec.packed)

    order = [run.grid.get_node_ids().index(message.metadata.dst_node_id) for message in messages]
    kinds = check_failures(row, order, strays)
    taken = [at for at in range(K) if at not in kinds]
    assert row["replies"] == len(taken)
    compared = {at: length for at, length in lengths.items() if kinds.get(at) in (None, "outlier")}
    liars = beyond_belief({at: loss for at, loss in losses.items() if at in compared})
    compared = {at: length for at, length in compared.items() if at not in liars}
    long = liars | too_long(compared, run.strategy.guard)
    assert long == {at for at, kind in kinds.items() if kind == "outlier"}
    for at in set(range(K)) - long:
        assert kinds.get(at) in (expected[at] or {None}), expected[at]

    # Nothing but what was taken has changed.
    if taken:
        assert "bad" not in row
        assert run.population == [models[at] if at in taken else sent[at] for at in range(K)]
    else:
        assert row["bad"] is True
        assert run.population == before
        assert contents(run.arrays) == arrays_before
    assert np.isfinite(run.codec.decode(run.arrays).floats).all()

    # The account of the round is the server's, and it can be written and read.
    saved = run.folder.read_rows()[-1]
    assert [saved[name] for name in ("round", "replies", "failures")] == [2, row["replies"], row["failures"]]
    assert row["round"] == 2
    assert tuple(row["clients"]) == tuple(order)
    assert isinstance(row["seconds"], float)
    assert saved.get("failures-by-kind", {}) == Counter(failed["kind"] for failed in row.get("failed", []))

    # And the run continues.
    assert run.round(LAST)["replies"] >= K // 2
    assert np.isfinite(run.codec.decode(run.arrays).floats).all()


def expectations(messages, replies, packed):
    """What each message should have come to: kinds of failure, model, length, loss; and how many were unasked."""
    answered = {message.metadata.message_id: at for at, message in enumerate(messages)}
    groups = defaultdict(list)
    for reply in replies:  # known by the message that it replies to: a late one comes from the same node
        facts = reply.metadata
        groups[answered.get(facts.reply_to_message_id)].append(reply)
    expected, models, lengths, losses = [], {}, {}, {}
    for at, message in enumerate(messages):
        if len(groups[at]) != 1:
            expected.append({"duplicate" if groups[at] else "no-reply"})
            continue
        kinds, arrays = verdict(groups[at][0], message)
        expected.append(kinds)
        if arrays is not None:
            models[at] = packed_content(arrays, packed)
            lengths[at] = update_lengths(arrays, message, packed)
            loss = metrics_of(groups[at][0].content).get("train-loss")
            if loss is not None:
                losses[at] = loss
    return expected, models, lengths, losses, len(groups[None])


def check_failures(row, order, strays):
    """Check the round's list of failures; return the kind of each by the place of its message."""
    failed = row.get("failed", [])
    assert row["failures"] == len(failed)
    assert all(each["kind"] in KINDS for each in failed)
    assert all(len(each["reason"].splitlines()) <= 1 for each in failed), "one line"
    assert all(len(each["reason"]) < 500 for each in failed), "and not a long one"
    assert [each["client"] for each in failed if each["kind"] == "unsolicited"] == [-1] * strays
    asked = [each for each in failed if each["kind"] != "unsolicited"]
    kinds = {order.index(each["client"]): each["kind"] for each in asked}
    assert len(kinds) == len(asked)
    # In the order of the messages; then who was not asked; outliers last.
    ranks = {"unsolicited": 1, "outlier": 2}
    places = [
        (ranks.get(each["kind"], 0), order.index(each["client"]) if each["client"] >= 0 else 0) for each in failed
    ]
    assert places == sorted(places)
    return kinds


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
def test_the_largest_floats_are_averaged(folder, kind, options, values):
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
    [(np.inf, -np.inf, 1.0, 1.0), (np.nan, 0, 0, 0), (1.7e308, 1, 1, 1), (-1e14, 1, 1, 1), (2**63 - 1, 1, 1, 1)],
    ids=str,
)
def test_a_metric_beyond_belief_is_refused(folder, losses):
    run = Run(folder)

    def meddle(messages, replies):
        for loss, reply in zip(losses, replies, strict=True):
            reply.content["metrics"]["train-loss"] = loss
        return replies

    run.inner.meddle = meddle
    row = run.round(2)
    assert row["replies"] == losses.count(1) + losses.count(0)
    assert row["train-loss"] in (0.0, 1.0)
    assert run.folder.read_rows()[-1]["round"] == 2


@pytest.mark.parametrize("name", SERVERS_OWN)
@pytest.mark.parametrize("kind", [FedMR, FedAvg])
def test_a_client_cannot_forge_server_metrics(folder, kind, name):
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


def test_a_bad_round_changes_nothing(folder):
    check_a_round(Run(folder), lambda messages, replies: [])


@pytest.mark.slow
@both_codecs
def test_messages_do_not_outlive_their_round(folder, packed):
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
    assert run.round(2)["failures-by-kind"] == {"duplicate": 1, "no-examples": 2, "unsolicited": 1}
    gc.collect()
    assert [thing() for thing in alive] == [None] * len(alive)
