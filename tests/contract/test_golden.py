"""Golden runs: what toy runs compute, bit for bit, round by round.

A refactor leaves these hashes alone; a change of behaviour rewrites golden.json, in the same commit, with

    python tests/contract/test_golden.py

The clients of the toy runs only add and multiply float32 numbers one by one, which gives the same bits on
every machine. Real training does not: PyTorch's kernels differ from one processor to the next, so its hashes are
compared only where they were written, and its losses everywhere.
"""

import hashlib
import json
import os
import platform
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedmr_flwr import FedAvg, FedMR
from fedmr_flwr.algorithms.clusamp import CluSamp
from fedmr_flwr.algorithms.fedcross import FedCross
from fedmr_flwr.algorithms.fedexp import FedExP
from fedmr_flwr.algorithms.fedmut import FedMut
from fedmr_flwr.algorithms.indep import Indep
from fedmr_flwr.algorithms.scaffold import Scaffold
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.runs import checkpoint
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.in_process import InProcessGrid
from fedmr_flwr.wire.grids.roster import RosterGrid
from fedmr_flwr.wire.messages import vector_record
from tests.support.runs import run

GOLDEN = Path(__file__).with_name("golden.json")
REWRITE = "if the change is intended, rewrite the file: python tests/contract/test_golden.py"
WRITING = "WRITE_GOLDEN"
ROUNDS, CLIENTS, M = 6, 12, 4


def floats(*shape):
    return np.zeros(shape, np.float32)


def norm(path):
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{path}.{name}": floats(2) for name in names} | {f"{path}.num_batches_tracked": np.zeros((), np.int64)}


LAYOUT = Layout.of(
    {
        "stem.0.conv.weight": floats(2, 1, 3, 3),
        **norm("stem.0.bn"),
        "blocks.0.conv.weight": floats(2, 2, 3, 3),
        **norm("blocks.0.bn"),
        "blocks.1.conv.weight": floats(2, 2, 3, 3),
        **norm("blocks.1.bn"),
        "head.weight": floats(3, 2),
        "head.bias": floats(3),
    },
    blocks=("blocks.0", "blocks.1"),
)
CODEC = Codec(LAYOUT)

# Name: strategy, its options, clients that never answer.
CASES = {
    "fedavg, by examples": (FedAvg, {"weighting": "examples"}, ()),
    "fedavg, uniform": (FedAvg, {"weighting": "uniform"}, ()),
    "clusamp": (CluSamp, {}, ()),
    "scaffold": (Scaffold, {"server_lr": 0.75}, (3,)),
    "indep": (Indep, {}, ()),
    "fedexp": (FedExP, {}, ()),
    "fedmut": (FedMut, {}, ()),
    "fedcross": (FedCross, {"alpha": 0.75}, ()),
    "fedmr, tensor": (FedMR, {"unit": "tensor"}, ()),
    "fedmr, layer": (FedMR, {"unit": "layer"}, ()),
    "fedmr, block": (FedMR, {"unit": "block"}, ()),
    "fedmr, block:2": (FedMR, {"unit": "block:2"}, ()),
    "fedmr, fraction:0.4": (FedMR, {"unit": "fraction:0.4"}, ()),
    "fedmr, fraction:1": (FedMR, {"unit": "fraction:1"}, ()),
    "fedmr, patterns": (FedMR, {"unit": ("bn", r"conv|bias", ".*")}, ()),
    "fedmr, first stage of 2": (FedMR, {"first_stage_rounds": 2}, ()),
    "fedmr, averaged buffers": (FedMR, {"buffers": "average"}, ()),
    "fedmr, population of 7": (FedMR, {"population": 7}, ()),
    "fedmr, population of 7, by examples": (FedMR, {"population": 7, "weighting": "examples"}, ()),
    "fedmr, two clients fail": (FedMR, {}, (3, 8)),
    "fedavg, two clients fail": (FedAvg, {}, (3, 8)),
}


def noise(purpose, *index):
    """[P] float32: multiples of 1/64 between -4 and 4."""
    whole = stream(7, purpose, *index).integers(-256, 257, LAYOUT.size)
    return whole.astype(np.float32) * np.float32(2**-6)


def grid_of_clients(failing):
    """A grid whose clients shrink their model and add noise of their own."""
    app = ClientApp()

    @app.query()
    def query(message, context):
        client = context.node_config["partition-id"]
        known = MetricRecord({"client": client, "num-examples": 5 + client})
        return Message(RecordDict({"metrics": known}), reply_to=message)

    @app.train()
    def train(message, context):
        client, number = context.node_config["partition-id"], message.content["config"]["server-round"]
        if client in failing:
            raise RuntimeError("no data")
        old = CODEC.decode(message.content["arrays"])
        new = old.floats * np.float32(0.875) + noise("golden", number, client)
        arrays = CODEC.encode(Packed(new, old.ints + (client % 3 + 1)))
        metrics = MetricRecord({"num-examples": 5 + client, "loss": 1.0})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        for name, length in message.content.config_records.get("returns", {}).items():
            content[name] = vector_record(noise(name, number, client)[:length])
        return Message(content, reply_to=message)

    return RosterGrid(InProcessGrid(app, CLIENTS), CLIENTS)


def digest(model, state):
    """SHA-256 of a global model and of what the strategy keeps besides."""
    found = hashlib.sha256()
    for name, array in [("floats", model.floats), ("ints", model.ints), *sorted(state.items())]:
        found.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def golden():
    """The file; with WRITE_GOLDEN in the environment a new one, written when all tests are done."""
    if WRITING not in os.environ:
        yield json.loads(GOLDEN.read_text(encoding="utf-8"))
        return
    found = {"machine": machine(), "toy": {}, "real": {}}
    yield found
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def check_equal(expected, found, what):
    assert len(found) == len(expected), f"{what}: {len(found)} rounds, not {len(expected)}"
    differ = [number for number, pair in enumerate(zip(expected, found, strict=True), 1) if pair[0] != pair[1]]
    assert not differ, f"{what}: differs from golden.json from round {differ[0]} on; {REWRITE}"


@pytest.mark.parametrize("case", CASES)
def test_toy_runs_match_golden(golden, case):
    kind, options, failing = CASES[case]
    strategy, grid = kind(clients_per_round=M, seed=11, layout=LAYOUT, **options), grid_of_clients(failing)
    arrays, found, failures = CODEC.encode(Packed(noise("start"), np.zeros(LAYOUT.counters, np.int64))), [], 0
    for number in range(1, ROUNDS + 1):
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        judged = strategy.judge(grid.send_and_receive(messages))
        arrays, _ = strategy.aggregate(number, judged)
        found.append(digest(CODEC.decode(arrays), strategy.save()))
        failures += len(judged.failures)
    assert bool(failures) == bool(failing), "the clients that fail are drawn"
    assert len(set(found)) == ROUNDS
    if WRITING in os.environ:
        golden["toy"][case] = found
    assert case in golden["toy"], f"golden.json does not know '{case}'; {REWRITE}"
    check_equal(golden["toy"][case], found, case)


def test_golden_cases_all_differ(golden):
    assert set(golden["toy"]) == set(CASES), REWRITE
    finals = [hashes[-1] for hashes in golden["toy"].values()]
    assert len(set(finals)) == len(finals), "each case computes something of its own"


def machine():
    """What the bits of PyTorch's results depend on."""
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        facts = ""
    found = [re.search(rf"^{name}\s*: (.*)$", facts, re.M) for name in ("model name", "cpu family", "model")]
    processor = " ".join(match[1] for match in found if match) or platform.processor()
    return {
        "processor": processor,
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


@pytest.mark.parametrize("name", ["fedavg", "fedmr"])
def test_real_training_matches_golden(golden, name, toy, monkeypatch):
    monkeypatch.setattr(checkpoint, "KEPT", 3)
    unit = ["strategy.unit=layer"] if name == "fedmr" else []
    settings = toy(f"strategy.name={name}", *unit, "training.batch-size=20", "client-cpus=1", "checkpoint-every=1")
    out = run(settings)
    rows = out.read_rows()
    saved = [checkpoint.load(note) for note in sorted(out.checkpoints.glob("*.json"))]
    hashes = [digest(Packed(*each.model), each.state) for each in saved]
    losses = {loss: [row[loss] for row in rows] for loss in ("train-loss", "test-loss")}
    if WRITING in os.environ:
        golden["real"][name] = {"hashes": hashes, **losses}
    assert name in golden["real"], f"golden.json does not know '{name}'; {REWRITE}"
    expected = golden["real"][name]
    for loss, values in losses.items():
        assert values == pytest.approx(expected[loss], rel=1e-3), f"{name}: the {loss} differs; {REWRITE}"
    if golden["machine"] == machine():
        check_equal(expected["hashes"], hashes, f"{name}, real training")


if __name__ == "__main__":
    os.environ[WRITING] = "1"
    raise SystemExit(pytest.main([__file__, "-q"]))
