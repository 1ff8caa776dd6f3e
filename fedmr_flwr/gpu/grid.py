"""The one-GPU engine: a Grid that trains the clients of a round side by side on one GPU, all at once if they fit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from math import ceil
from typing import Any, TypeVar

import torch
from flwr.app import Context, Message, MessageType
from torch import nn

from fedmr_flwr import algorithms, models
from fedmr_flwr.client.app import TrainRequest, client_app
from fedmr_flwr.client.environment import SimulatedEnvironment
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.data import datasets, skew
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.errors import DeviceError, EngineError, describe
from fedmr_flwr.gpu.graphs import STREAMS, GraphLane
from fedmr_flwr.gpu.lanes import ResidentLane, sizes_of
from fedmr_flwr.gpu.stack import StackLane
from fedmr_flwr.models import layers
from fedmr_flwr.models.base import duplicate
from fedmr_flwr.models.packing import layout_of
from fedmr_flwr.training.devices import arithmetic, is_out_of_memory, pick_device, place, threads, to_input
from fedmr_flwr.training.evaluation import evaluate
from fedmr_flwr.training.lane import TrainResult
from fedmr_flwr.training.rules import LocalRule, local_rule
from fedmr_flwr.wire.grids.in_process import InProcessGrid, failed
from fedmr_flwr.wire.messages import ARRAYS, FLOATS
from fedmr_flwr.wire.npy import DeviceArray
from fedmr_flwr.wire.strategy import ServerStrategy

T = TypeVar("T")

# The memory for a mean in double precision with its intermediate values, in multiples of a model in float32.
_SUMS = 10
# The largest share of the free memory that the training set may take once it is prepared, in float32.
_PREPARED_SHARE = 0.25


class GraphStack(StackLane, GraphLane):
    """A stack whose step is captured as a CUDA graph and replayed."""


class GpuGrid(InProcessGrid):
    """A Grid whose clients train on one GPU.

    Models stay there from round to round: messages and replies contain tensors, which are serialised only if their
    bytes are read. The training set is there, too. Messages that do not request training are handled one by one,
    as in the in-process engine.

    Args:
        settings: of the run.
        report: called with a line for the user.
        device: for training; None: the device of the settings.
        lane: creates a lane from a model, its layout and the data.
        stack: creates a lane for all clients of a round; None: there is none if `lane` is given.

    Raises:
        DeviceError: the GPU does not exist.
    """

    def __init__(
        self,
        settings: Settings,
        report: Callable[[str], None] = lambda _: None,
        device: torch.device | None = None,
        lane: Callable[..., ResidentLane] | None = None,
        stack: Callable[..., StackLane] | None = None,
    ) -> None:
        super().__init__(client_app, settings.clients)
        self._settings, self._report = settings, report
        self._device = device or _gpu(settings)
        self._make_lane = lane or GraphLane
        self._make_stack = stack or (None if lane else GraphStack)
        self._lanes: list[ResidentLane] = []
        self._stack: StackLane | None = None
        # How many lanes fit is found by trying: the memory of a graph is known only when it is captured. Each needs
        # its own stream.
        self._most = self._reported = min(settings.clients_per_round, STREAMS)
        rule = local_rule(settings.strategy)
        if not rule.capturable:
            report(f"the steps of {type(rule).__name__} cannot be captured: launching them kernel by kernel")
        if self._device.type == "cuda" and (why := layers.missing(self._device)):
            report(f"all layers are PyTorch's, which takes longer: {why}")

    def _handle_all(self, messages: Sequence[Message]) -> list[Message]:
        """Handle messages; if they request training, train all clients together."""
        if not messages or any(message.metadata.message_type != MessageType.TRAIN for message in messages):
            return super()._handle_all(messages)
        with ExitStack() as contexts:
            contexts.enter_context(threads(self._settings.client_cpus))
            contexts.enter_context(arithmetic(self._settings.precision, self._device))
            if self._device.type == "cuda":
                contexts.enter_context(torch.cuda.device(self._device))
            return self._train_clients(messages)

    def _train_clients(self, messages: Sequence[Message]) -> list[Message]:
        """Train in as many waves as necessary, all of about the same size."""
        turns = [_Turn(message) for message in messages]
        # The clients with most examples first: a round ends with the last step of the slowest.
        ordered = sorted(turns, key=lambda turn: -(turn.attempt(partial(self._examples_of, turn.message)) or 0))
        with self._reserve(messages):
            if self._make_stack and self._stackable:
                self._train_stack(ordered, self._make_stack)
            while waiting := [turn for turn in ordered if not turn.reply]:
                self._report_fewer()
                waves = ceil(len(waiting) / self._most)
                self._wave(waiting[: ceil(len(waiting) / waves)])
        return [turn.reply for turn in turns if turn.reply]

    def _train_stack(self, turns: Sequence["_Turn"], make: Callable[..., StackLane]) -> None:
        """Train clients in lockstep; if that is not possible, leave them without replies."""
        together = self._settings.clients_per_round
        for start in range(0, len(turns), together):
            some = turns[start : start + together]
            ready = [turn for turn in some if turn.decode(self._context_of(turn.message))]
            try:
                self._stack = self._stack or make(model=self._model(), **self._common)
                _in_lockstep(self._stack, ready)
                why = next((turn.failure for turn in some if turn.starved), None)
            except Exception as error:  # only its text is kept: its traceback would keep the stack's tensors alive
                why = describe(error)
            if why:
                self._leave_lockstep(why)
                for turn in turns:
                    if not turn.reply:
                        turn.reset()
                return
            for turn in some:
                if turn.failure:
                    turn.reply = failed(turn.message, turn.failure)

    def _leave_lockstep(self, why: str) -> None:
        """Train in lanes from now on."""
        self._report(f"clients cannot train in lockstep, and have lanes of their own: {why}")
        if self._stack:
            self._stack.close()
        self._make_stack = self._stack = None
        self._free_memory()

    def _wave(self, turns: Sequence["_Turn"]) -> None:
        """Train some clients side by side; those without memory wait for the next wave, if it can be smaller."""
        running: list[_Turn] = []
        for turn in turns:
            turn.attempt(partial(turn.begin, self._context_of(turn.message), partial(self._lane_for, turns)))
            if turn.starved:
                break
            running = _stepped([*running, turn])  # the GPU trains while the host prepares the next client
        while running:
            running = _stepped(running)
        for turn in turns:
            if turn.lane:
                turn.attempt(turn.end)
        for turn in turns:
            if turn.lane and turn.failure:  # its tensors are in an unknown state
                self._drop([turn.lane])
            turn.lane = None
        retry = any(turn.starved for turn in turns) and self._fewer()
        for turn in turns:
            if turn.starved and retry:
                turn.reset()
            elif turn.failure:
                turn.reply = failed(turn.message, turn.failure)

    def _examples_of(self, message: Message) -> int:
        """Return the number of examples of a message's client."""
        return len(self._environment.parts()[self._numbers[message.metadata.dst_node_id]])

    def _lane_for(self, turns: Sequence["_Turn"], client: TrainRequest) -> ResidentLane:
        """Return the free lane that knows most of a client's batch sizes, or a new one if none is free."""
        taken = [turn.lane for turn in turns]
        free = [lane for lane in self._lanes if lane not in taken]
        if not free:
            self._lanes.append(self._make_lane(model=self._model(), **self._common))
            return self._lanes[-1]
        sizes = sizes_of(client, self._settings.training.batch_size)
        # Each new size is a step without a graph and a capture.
        return min(free, key=lambda lane: len(sizes - lane.sizes))

    def _fewer(self) -> bool:
        """Train fewer clients at a time, and drop the lanes beyond that number; return whether that is possible."""
        if self._most == 1:
            return False
        self._most = max(1, min(len(self._lanes), self._most - 1))
        self._drop(self._lanes[self._most :])
        self._free_memory()
        return True

    def _drop(self, lanes: Sequence[ResidentLane]) -> None:
        for lane in lanes:
            lane.close()
            self._lanes.remove(lane)

    def _free_memory(self) -> None:
        """Free the memory of dropped lanes."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def _report_fewer(self) -> None:
        """Report the number of clients that train at a time, if it has decreased."""
        if self._most < self._reported:
            self._reported = self._most
            self._report(f"the GPU has memory for {self._most} clients at a time: rounds are trained in waves")

    @contextmanager
    def _reserve(self, messages: Sequence[Message]) -> Iterator[None]:
        """Reserve the memory that the server needs after the training."""
        # Reserved before the lanes exist: they would fill the memory, and the server would find none after the
        # training.
        held = None
        while held is None:
            try:
                held = torch.empty(self._for_server(messages), dtype=torch.uint8, device=self._device)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            if held is None and self._stack:
                self._leave_lockstep("the server needs the memory")
            elif held is None and not (self._lanes and self._fewer()):
                break
        yield

    def _for_server(self, messages: Sequence[Message]) -> int:
        """Return the bytes that the server needs after a training: for scores, sums, and at first the next models.

        Later the next models replace those that were sent.
        """
        if self._device.type != "cuda":
            return 0
        if not self._strategy.accepts_device_models:
            return self._for_scoring
        sent = messages[0].content.array_records[ARRAYS].get(FLOATS)
        vectors = _SUMS + (0 if isinstance(sent, DeviceArray) else self._strategy.slots)
        return self._for_scoring + vectors * 4 * self._layout.size

    @cached_property
    def _strategy(self) -> ServerStrategy[Any]:
        """A copy of the server's strategy, for what it needs."""
        return algorithms.create(self._settings, self._layout)

    @cached_property
    def _for_scoring(self) -> int:
        """The bytes needed to score a model, measured."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before: int = torch.cuda.memory_reserved()
        evaluate(self._model(), self._dataset, self._dataset.test.to(self._device), self._device)
        return torch.cuda.max_memory_reserved() - before

    @cached_property
    def _stackable(self) -> bool:
        """Whether clients in lockstep train as in lanes of their own."""
        settings, training = self._settings, self._settings.training
        # Of the class itself: one that inherits from it may do something else with a batch.
        model = vars(type(self._untrained)).get("stackable", False)
        plain = type(local_rule(settings.strategy)) is LocalRule
        own = training.augment or training.clip_norm or training.label_smoothing or settings.evaluation.forgetting
        fits = settings.precision != "bf16" and self._dataset.classes <= layers.MOST_CLASSES
        return bool(model and plain and fits and not own and not layers.missing(self._device))

    def _model(self) -> nn.Module:
        model = duplicate(self._untrained)
        place(model, self._device, self._settings.precision)
        return model

    @cached_property
    def _environment(self) -> SimulatedEnvironment:
        """The environment of the first client, for what all have in common."""
        return SimulatedEnvironment(self._settings, 0)

    @cached_property
    def _dataset(self) -> Dataset:
        return datasets.load(self._settings.data, self._settings.data_dir, self._settings.seed)

    @cached_property
    def _untrained(self) -> nn.Module:
        return models.build(
            self._settings.model.name, self._dataset.input_shape, self._dataset.classes, self._settings.seed,
            text=self._dataset.text,
        )  # fmt: skip

    @cached_property
    def _layout(self) -> Layout:
        return layout_of(self._untrained)

    @cached_property
    def _common(self) -> dict[str, Any]:
        """The arguments of all lanes, above all the training set on the GPU."""
        try:
            settings, parts = self._settings, self._environment.parts()
            examples = skew.of_all(self._dataset, parts, settings.partition, settings.seed).to(self._device)
        except torch.OutOfMemoryError:
            raise EngineError("the training set does not fit into the GPU's memory; use engine=in-process") from None
        dataset, examples = self._prepared(examples)
        return {
            "layout": self._layout,
            "dataset": dataset,
            "examples": examples,
            "settings": self._settings,
            "largest": self._environment.largest,
        }

    def _prepared(self, examples: Examples) -> tuple[Dataset, Examples]:
        """Prepare all examples beforehand if there is ample memory; return the data set to prepare them further."""
        dataset, size = self._dataset, examples.inputs.numel()
        if self._device.type == "cpu" or dataset.normalisation is None or self._settings.training.augment:
            return dataset, examples
        free, _ = torch.cuda.mem_get_info()
        if 4 * size > free * _PREPARED_SHARE:
            return dataset, examples
        # In parts, because the intermediate values take several times the memory.
        parts = torch.split(examples.inputs, 1000)
        inputs = torch.cat([to_input(dataset, part, self._settings.precision) for part in parts])
        return replace(dataset, normalisation=None), Examples(inputs, examples.labels)


class _Turn:
    """The training of one client, from its message to its reply or failure.

    Attributes:
        message: the server's.
        client: what it asks of the client, once it is decoded.
        reply: None until the client has one.
        failure: the error in one line; None if there is none.
        starved: whether the device was out of memory.
        lane: in which it trains; None before and afterwards.
    """

    def __init__(self, message: Message) -> None:
        self.message = message
        self.client: TrainRequest
        self.reply: Message | None = None
        self.reset()

    def reset(self) -> None:
        """Reset to the state before the training."""
        self.failure: str | None = None
        self.starved = False
        self.lane: ResidentLane | None = None

    def attempt(self, act: Callable[[], T]) -> T | None:
        """Call `act` unless the client has failed; as under Flower, any exception is this client's failure."""
        if self.failure:
            return None
        try:
            return act()
        except Exception as error:  # only its text is kept: its traceback would keep the lane's tensors alive
            self.failure, self.starved = describe(error), is_out_of_memory(error)
            return None

    def decode(self, context: Context) -> bool:
        """Decode the message to the client; return whether that was possible."""
        if request := self.attempt(partial(TrainRequest, self.message, context)):
            self.client = request
        return request is not None

    def begin(self, context: Context, lane_for: Callable[[TrainRequest], ResidentLane]) -> None:
        """Assign the client to a lane."""
        self.client = TrainRequest(self.message, context)
        self.lane = lane_for(self.client)
        self.lane.take(self.client)

    def step(self) -> bool:
        """Launch the client's next step; return whether one was left."""
        assert self.lane
        return self.lane.step()

    def end(self) -> None:
        """Take the result from the lane, and create the reply."""
        assert self.lane
        result = self.lane.end()
        self.client.measure("after", self.lane.model)
        self.answer(self.lane.packed(), result)

    def answer(self, trained: Packed, result: TrainResult) -> None:
        """Create the reply."""
        self.reply = self.client.reply(trained, result)


def _in_lockstep(stack: StackLane, turns: Sequence[_Turn]) -> None:
    """Train clients to the end, and create their replies."""
    if not turns:
        return
    stack.take_all([turn.client for turn in turns])
    while stack.step():
        pass
    for turn, (model, result) in zip(turns, stack.end_all(), strict=True):
        turn.attempt(partial(turn.answer, model, result))


def _stepped(running: Sequence[_Turn]) -> list[_Turn]:
    """Launch a step of each client in turn; return the clients that have more steps."""
    # In turn, so that no stream runs empty while the host launches all steps of another client.
    return [turn for turn in running if turn.attempt(turn.step)]


def _gpu(settings: Settings) -> torch.device:
    """Return the run's GPU.

    Raises:
        DeviceError: there is none, or the settings have a CPU.
    """
    device = pick_device(settings.device)
    if device.type == "cpu":
        why = "device is cpu" if settings.device == "cpu" else "this machine has no CUDA device"
        raise DeviceError(f"engine gpu: {why}; use engine=in-process or engine=ray on a CPU")
    return device
