"""The one-GPU engine: the same model as in process, bit for bit, whatever is captured, and however few clients fit.

On a CPU the lanes are eager ones, or ones that record a step and replay it without Python, as a CUDA graph does.
"""

import gc
import re
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from fedmr_flwr.algorithms.fedprox import Prox
from fedmr_flwr.config import registry
from fedmr_flwr.errors import DeviceError, RunError
from fedmr_flwr.gpu.graphs import GraphLane
from fedmr_flwr.gpu.grid import GpuGrid
from fedmr_flwr.gpu.lanes import ResidentLane
from fedmr_flwr.launch import engines
from fedmr_flwr.models import MODELS
from fedmr_flwr.models.base import Classifier
from fedmr_flwr.models.mlp import MLP
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server import experiment
from fedmr_flwr.training.rules import LocalRule
from fedmr_flwr.wire.grids.roster import RosterGrid
from fedmr_flwr.wire.npy import DeviceArray
from tests.support.recorder import RecordedLane
from tests.support.runs import digest, run

CPU = torch.device("cpu")
CUDA = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def cuda(test):
    """Mark a test that needs a GPU."""
    for mark in CUDA:
        test = mark(test)
    return test


def few(first, *others):
    """Return parameters of which all but the first are slow."""
    return [first, *(pytest.param(other, marks=pytest.mark.slow) for other in others)]


# Strategies, with what else is set: rounds, for instance, in which clients come back.
STRATEGIES = [
    "fedmr", "fedmr strategy.population=5 strategy.first-stage-rounds=1", "fedmr wire=float16", "fedavg", "fedprox",
    "scaffold", "moon rounds=6", "fedgen", "fedasam training.augment=true", "fedexp", "fedmut", "fedcross", "clusamp",
    "indep strategy.weighting=examples", "flwr:FedAdam", "fedmr strategy.local-rule=fedprox training.momentum=0.0",
]  # fmt: skip
NETWORKS = ["cnn", "mlp", "resnet20", "resnet20-fedmr", "vgg16", "charlstm"]


def on_gpu(settings):
    return settings.model_copy(update={"device": "cuda", "engine": "gpu"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    few("fedmr partition.skew=rotation", "scaffold", "fedgen strategy.generator-steps=3", "flwr:FedAdam"),
)
def test_strategies_equal_in_process(toy, strategy):
    settings = [toy(*f"strategy.name={strategy}".split(), run=name) for name in ("a", "b", "c")]
    expected = run(settings[0])
    eager = run(settings[1], grid=GpuGrid(settings[1], device=CPU, lane=ResidentLane))
    replayed = RecordedLane.replays
    recorded = run(settings[2], grid=GpuGrid(settings[2], device=CPU, lane=RecordedLane))
    assert digest(eager) == digest(recorded) == digest(expected)
    assert RecordedLane.replays > replayed + 5
    for ours, theirs in zip(recorded.read_rows(), expected.read_rows(), strict=True):
        assert ours["failures"] == 0
        for name in ("test-accuracy", "train-loss", "clients", "bytes-up", "bytes-down"):
            assert ours[name] == theirs[name]
        for name in {"similarity", "spread"} & set(theirs):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)


# What differs between rounds and clients is in tensors, so that replays are as good as steps.
RECIPES = [
    "optimizer=adam schedule=exponential decay=0.5 work=stragglers:0.5 local-epochs=3",
    "momentum=0.9 nesterov=true schedule=cosine warmup-rounds=1 weight-decay=0.01 clip-norm=1 label-smoothing=0.1",
    "optimizer=adamw weight-decay=0.1 schedule=inverse local-epochs=null local-steps=9",
    "schedule=step decay=0.5 decay-rounds=1 local-epochs=1.5",
]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_equal_in_process(toy, recipe):
    options = ["training.batch-size=20", *(f"training.{option}" for option in recipe.split())]
    settings = [toy(*options, "rounds=4", run=name) for name in ("a", "b", "c")]
    expected = run(settings[0])
    eager = run(settings[1], grid=GpuGrid(settings[1], device=CPU, lane=ResidentLane))
    replayed = RecordedLane.replays
    recorded = run(settings[2], grid=GpuGrid(settings[2], device=CPU, lane=RecordedLane))
    assert digest(eager) == digest(recorded) == digest(expected)
    assert RecordedLane.replays > replayed + 5
    losses = [[row["train-loss"] for row in out.read_rows()] for out in (recorded, expected)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("model", few("mlp", "charlstm"))
def test_networks_equal_in_process(toy, small, model):
    settings = [toy(*small(model), run=name) for name in ("a", "b")]
    expected, replayed = run(settings[0]), RecordedLane.replays
    assert digest(run(settings[1], grid=GpuGrid(settings[1], device=CPU, lane=RecordedLane))) == digest(expected)
    assert RecordedLane.replays > replayed


def stop_in_round_4(monkeypatch):
    """Interrupt the fourth exchange of models."""
    rounds, exchange = [], RosterGrid.exchange

    def stop(grid, messages, **more):
        rounds.append(1)
        if len(rounds) == 4:
            raise KeyboardInterrupt
        return exchange(grid, messages, **more)

    monkeypatch.setattr(RosterGrid, "exchange", stop)


COSINE = " training.schedule=cosine training.warmup-rounds=1 training.work=stragglers:0.5 training.local-epochs=2"


@pytest.mark.parametrize("strategy", few("scaffold", "fedmr", "moon", "fedmr training.optimizer=adam" + COSINE))
def test_resumed_run_ends_the_same(toy, monkeypatch, strategy):
    options = [*f"strategy.name={strategy}".split(), "rounds=5", "checkpoint-every=2"]
    settings = [toy(*options, run=name) for name in ("whole", "cut")]
    whole = run(settings[0])
    stop_in_round_4(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(settings[1], grid=GpuGrid(settings[1], device=CPU, lane=RecordedLane))
    half = RunFolder(settings[1].run_dir)
    assert len(half.read_rows()) == 3
    run(settings[1], half, GpuGrid(settings[1], device=CPU, lane=RecordedLane))
    assert digest(half) == digest(whole)


def test_models_stay_on_the_device(toy):
    settings = toy()
    grid = GpuGrid(settings, device=CPU, lane=ResidentLane)
    seen, exchange = [], grid.send_and_receive

    def look(messages, timeout=None):
        messages = list(messages)
        replies = exchange(messages, timeout=timeout)
        for message in [*messages, *replies]:
            seen.extend(record["floats"] for record in message.content.array_records.values())
        return replies

    grid.send_and_receive = look
    run(settings, grid=grid)
    # In the first round the initial model goes out as bytes; after that everything is where it was trained.
    assert [isinstance(array, DeviceArray) for array in seen] == [False] * 3 + [True] * (len(seen) - 3)


def test_full_memory_trains_in_waves(toy):
    made, reported = [], []

    class Large(ResidentLane):
        def __init__(self, **arguments):
            made.append(self)
            if len(made) == 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().__init__(**arguments)

    settings = [toy("clients-per-round=5", run=name) for name in ("a", "b")]
    expected = run(settings[0])
    out = run(settings[1], grid=GpuGrid(settings[1], reported.append, CPU, Large))
    assert digest(out) == digest(expected)
    assert [row["failures"] for row in out.read_rows()] == [0, 0, 0]
    # The third lane finds no memory, so that three clients wait; no more lanes are made, and none fails again.
    assert [int(re.findall(r"memory for (\d) clients at a time", line)[0]) for line in reported] == [2]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ],
    ids=lambda error: str(error).split()[0],
)
def test_client_out_of_memory_restarts(toy, error):
    made, gone = [], []

    class Large(ResidentLane):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            made.append(weakref.ref(self))

        def _train_batch(self, size):
            if len(made) == 3 and self is made[1]() and self._steps == 2:
                made.append(None)
                raise type(error)(str(error))  # a new one, because an error holds on to where it was raised
            super()._train_batch(size)

    class Looking(GpuGrid):
        def _free_memory(self):
            gone.append([made[at]() is None for at in range(3)])

    settings = [toy(run=name) for name in ("a", "b")]
    expected = run(settings[0])
    gc.disable()
    try:
        out = run(settings[1], grid=Looking(settings[1], device=CPU, lane=Large))
    finally:
        gc.enable()
    assert digest(out) == digest(expected)
    assert [row["failures"] for row in out.read_rows()] == [0, 0, 0]
    # Nothing holds on to the lane that failed; the other two go on.
    assert gone == [[False, True, False]]


def test_no_memory_at_all_is_a_bad_round(toy):
    class Huge(ResidentLane):
        def take(self, client):
            raise torch.OutOfMemoryError("CUDA out of memory")

    settings = toy()
    with pytest.raises(
        Exception, match=r"round 1: no client gave a good reply .*OutOfMemoryError: CUDA out of memory"
    ):
        run(settings, grid=GpuGrid(settings, device=CPU, lane=Huge))


def test_failed_client_gets_a_new_lane(toy):
    made, failing = [], []

    class Failing(ResidentLane):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            made.append(self)

        def take(self, client):
            super().take(client)
            if made.index(self) == 1 and not failing:
                failing.append(client.environment.number)

        def _train_batch(self, size):
            if made.index(self) == 1 and self._steps == 2:
                self.model.classifier.weight.data.fill_(float("nan"))
                raise ValueError("too bad")
            super()._train_batch(size)

    settings = toy()
    out = run(settings, grid=GpuGrid(settings, device=CPU, lane=Failing))
    rows = out.read_rows()
    assert [row["failures"] for row in rows] == [1, 0, 0]
    assert rows[0]["failed"][0]["reason"].startswith("ValueError: too bad ("), (
        "with the place in the code that failed"
    )
    assert [failure["client"] for failure in rows[0]["failed"]] == failing
    assert len(made) == 4


def test_largest_clients_start_first(toy):
    settings, taken = toy("clients-per-round=6", "rounds=1"), []

    class Noted(ResidentLane):
        def take(self, client):
            super().take(client)
            taken.append(len(client.environment.indices))

    run(settings, grid=GpuGrid(settings, device=CPU, lane=Noted))
    assert taken == sorted(taken, reverse=True) and len(set(taken)) > 3


def test_uncapturable_rule_runs_eagerly(toy, monkeypatch):
    class Waiting(Prox):
        capturable = False

        def adjust(self, model, state):
            if all(float(parameter.detach().sum()) > -1e9 for parameter in model.parameters()):
                super().adjust(model, state)

    settings = [toy("strategy.name=fedprox", run=name) for name in ("a", "b")]
    expected = run(settings[0])
    monkeypatch.setattr(registry.find("fedprox"), "Rule", Waiting)
    reported, replayed = [], RecordedLane.replays
    assert digest(run(settings[1], grid=GpuGrid(settings[1], reported.append, CPU, RecordedLane))) == digest(expected)
    assert reported == ["the steps of Waiting cannot be captured: launching them kernel by kernel"]
    assert RecordedLane.replays == replayed


def test_untraceable_state_is_refused(toy, monkeypatch):
    class Hidden(NamedTuple):
        received: SimpleNamespace

    class Hiding(Prox):
        def begin(self, model, task):
            return Hidden(SimpleNamespace(received=super().begin(model, task)))

    monkeypatch.setattr(registry.find("fedprox"), "Rule", Hiding)
    settings = toy("strategy.name=fedprox")
    with pytest.raises(RunError, match=r"cannot use Hidden\.received, a SimpleNamespace: a rule's state"):
        run(settings, grid=GpuGrid(settings, device=CPU, lane=ResidentLane))


def test_docs_list_captured_rules():
    text = (Path(__file__).parents[2] / "docs/guides/one-gpu.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \|.*\| (captured|kernel by kernel) \|$", text, re.MULTILINE))
    rules = {registry.find(name).Rule for name in registry.ALGORITHMS}
    assert listed == {rule.__name__: "captured" if rule.capturable else "kernel by kernel" for rule in rules}


def test_waves_have_equal_sizes(toy):
    settings = [toy("clients=35", "clients-per-round=34", "rounds=1", run=name) for name in ("a", "b")]
    expected = run(settings[0])
    lanes, reported = [], []

    class Counted(ResidentLane):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            lanes.append(self)

    assert digest(run(settings[1], grid=GpuGrid(settings[1], reported.append, CPU, Counted))) == digest(expected)
    assert len(lanes) == 17 and not reported, "two waves of 17, not one of 32 and one of 2"


def test_clients_return_to_their_lane(toy):
    settings = toy("clients-per-round=6", "rounds=4")  # all clients in every round, in another order
    lanes, seen = [], []

    class Listed(ResidentLane):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            lanes.append(self)

    grid = GpuGrid(settings, device=CPU, lane=Listed)
    exchange = grid.send_and_receive

    def look(messages, timeout=None):
        replies = exchange(messages, timeout=timeout)
        if lanes:
            seen.append([sorted(lane.sizes) for lane in lanes])
        return replies

    grid.send_and_receive = look
    run(settings, grid=grid)
    assert len({tuple(sizes) for sizes in seen[0]}) > 2
    assert seen == [seen[0]] * 4


class Dropping(Classifier):
    """A model of a user's own, whose dropout draws from PyTorch's default generator."""

    def __init__(self, shape, classes):
        super().__init__()
        self.hidden, self.dropout = torch.nn.Linear(64, 16), torch.nn.Dropout(0.5)
        self.classifier = torch.nn.Linear(16, classes)

    def features(self, images):
        return self.dropout(torch.relu(self.hidden(images.flatten(1))))


@pytest.mark.parametrize("lane", [ResidentLane, RecordedLane])
def test_dropout_equals_in_process(toy, monkeypatch, lane):
    monkeypatch.setitem(MODELS, "dropping", Dropping)
    settings = [toy("model.name=dropping", run=name) for name in "ab"]
    expected = run(settings[0])
    assert digest(run(settings[1], grid=GpuGrid(settings[1], device=CPU, lane=lane))) == digest(expected)


class Plain(torch.nn.Sequential):
    """Any module: random numbers, a layer that is used twice, BatchNorm over single values, no named parts."""

    def __init__(self, shape, classes):
        again = torch.nn.Linear(32, 32)
        super().__init__(
            torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.RReLU(), again, torch.nn.BatchNorm1d(32), again,
            torch.nn.Linear(32, classes),
        )  # fmt: skip


@pytest.mark.parametrize("strategy", few("fedmr", "scaffold", "moon", "fedgen", "fedasam"))
def test_any_model_equals_in_process(toy, monkeypatch, strategy):
    monkeypatch.setitem(MODELS, "plain", Plain)
    # The last batch of a client has a single example.
    more = ["model.name=plain", f"strategy.name={strategy}", "training.local-epochs=2"]
    settings = [toy(*more, run=name) for name in "ab"]
    expected, replayed = run(settings[0]), RecordedLane.replays
    found = run(settings[1], grid=GpuGrid(settings[1], device=CPU, lane=RecordedLane))
    assert digest(found) == digest(expected) and RecordedLane.replays > replayed
    assert [row["failures"] for row in found.read_rows()] == [0, 0, 0]


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_missing_gpu_is_one_line(toy, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = toy("engine=gpu", f"device={device}")
    with pytest.raises(DeviceError) as error:
        engines.grid_of(settings)
    assert "use engine=in-process" in str(error.value) or "use device=auto or cpu" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("strategy", [pytest.param(strategy, marks=CUDA) for strategy in STRATEGIES])
def test_cuda_strategies_equal_in_process(toy, strategy):
    assert {text.split()[0] for text in STRATEGIES} >= set(registry.ALGORITHMS)
    a, b = (toy("rounds=3", *f"strategy.name={strategy}".split(), "device=cuda", run=name) for name in "ab")
    expected = run(a)
    assert digest(run(on_gpu(b))) == digest(expected)


@pytest.mark.parametrize("recipe", [pytest.param(recipe, marks=CUDA) for recipe in [*RECIPES, "momentum=0.9"]])
def test_cuda_recipes_equal_in_process(toy, recipe):
    options = ["training.batch-size=20", *(f"training.{option}" for option in recipe.split())]
    a, b = (toy(*options, "rounds=4", "device=cuda", run=name) for name in "ab")
    expected = run(a)
    assert digest(run(on_gpu(b))) == digest(expected)


@pytest.mark.parametrize("model", [pytest.param(model, marks=CUDA) for model in NETWORKS])
def test_cuda_networks_equal_in_process(toy, small, model):
    a, b = (toy(*small(model), "device=cuda", run=name) for name in "ab")
    expected = run(a)
    assert digest(run(on_gpu(b))) == digest(expected)


@cuda
def test_cuda_dropout_equals_in_process(toy, monkeypatch):
    monkeypatch.setitem(MODELS, "dropping", Dropping)
    a, b = (toy("model.name=dropping", "rounds=4", "device=cuda", run=name) for name in "ab")
    before = torch.cuda.get_rng_state()
    expected = run(a)
    assert digest(run(on_gpu(b))) == digest(expected)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize("precision", [pytest.param(name, marks=CUDA) for name in ("float32", "tf32", "bf16")])
def test_cuda_precisions_learn(toy, precision):
    settings = on_gpu(toy("rounds=10", "training.batch-size=20", f"precision={precision}"))
    assert run(settings).read_rows()[-1]["test-accuracy"] > 0.5


@cuda
def test_cuda_small_memory_trains_in_waves(toy, small, monkeypatch):
    def free():
        gc.collect()
        torch.cuda.empty_cache()

    monkeypatch.setitem(MODELS, "wide-mlp", partial(MLP, hidden=4000))
    a, b = (on_gpu(toy(*small("wide-mlp"), "strategy.name=fedprox", run=name)) for name in "ab")
    free()
    torch.cuda.reset_peak_memory_stats()
    expected = run(a)
    layout = experiment.Experiment(a).layout
    # A lane holds a model, its gradients and its momentum; of three lanes a half of them is missing.
    limit, reported = torch.cuda.max_memory_reserved() - 1.5 * 3 * 4 * layout.size, []
    free()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        out = run(b, grid=engines.grid_of(b, report=reported.append))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert digest(out) == digest(expected)
    assert [row["failures"] for row in out.read_rows()] == [0, 0]
    assert len(reported) == 1 and re.search(r"memory for [12] clients at a time", reported[0])


# The first in lockstep, the second each in a lane of its own.
@pytest.mark.parametrize("strategy", [pytest.param(strategy, marks=CUDA) for strategy in ("fedmr", "fedprox")])
def test_cuda_capture_is_retried(toy, monkeypatch, strategy):
    a, b = (toy("device=cuda", f"strategy.name={strategy}", run=name) for name in "ab")
    expected = run(a)
    tries, capture, forward = [], GraphLane._try_capture, LocalRule.forward

    def trying(lane, size):
        tries.append((size, torch.cuda.memory_allocated()))
        return capture(lane, size)

    def starving(rule, model, state, inputs, labels):
        found = forward(rule, model, state, inputs, labels)  # with all that it holds on to
        if torch.cuda.is_current_stream_capturing() and len(tries) % 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(GraphLane, "_try_capture", trying)
    monkeypatch.setattr(LocalRule, "forward", starving)
    reported = []
    out = run(on_gpu(b), grid=engines.grid_of(on_gpu(b), report=reported.append))
    assert tries and not reported
    for (size, first), (again, second) in zip(tries[::2], tries[1::2], strict=True):
        # Of the first try nothing is left, the gradients before it are gone, and what cuBLAS works with, which are
        # megabytes, is not.
        assert size == again and 0 <= first - second < 2**20
    assert digest(out) == digest(expected)


@cuda
def test_cuda_no_messages_no_replies(toy):
    settings = on_gpu(toy())
    assert engines.grid_of(settings).push_messages([]) == []


@cuda
def test_cuda_waiting_step_is_explained(toy, monkeypatch):
    class Waiting(LocalRule):
        def adjust(self, model, state):
            next(model.parameters()).sum().item()

    monkeypatch.setattr(registry.find("fedavg"), "Rule", Waiting)
    settings = on_gpu(toy("strategy.name=fedavg"))
    with pytest.raises(RunError, match=r"a step of Waiting cannot be captured .* set capturable = False"):
        run(settings)


@pytest.mark.parametrize("strategy", [pytest.param(strategy, marks=CUDA) for strategy in ("fedmr", "scaffold")])
def test_cuda_resumed_run_ends_the_same(toy, monkeypatch, strategy):
    whole, cut = (
        on_gpu(toy(f"strategy.name={strategy}", "rounds=6", "checkpoint-every=2", run=name)) for name in ("a", "b")
    )
    expected = run(whole)
    stop_in_round_4(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(cut)
    half = RunFolder(cut.run_dir)
    run(cut, half)
    assert digest(half) == digest(expected)
