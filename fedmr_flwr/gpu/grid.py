"""The one-GPU engine: a Grid whose clients train side by side on one card, all of a round at once if they fit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import cached_property, partial
from math import ceil
from typing import Any, TypeVar

import torch
from flwr.app import Context, Message, MessageType

from fedmr_flwr import algorithms, models
from fedmr_flwr.algorithms.contract import ServerStrategy
from fedmr_flwr.client.app import Assignment, app
from fedmr_flwr.client.sites import Simulated
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.data import datasets
from fedmr_flwr.data.base import Dataset
from fedmr_flwr.errors import DeviceError, EngineError
from fedmr_flwr.gpu.graphs import STREAMS, GraphSlot
from fedmr_flwr.gpu.slots import Slot, sizes_of
from fedmr_flwr.models.base import Classifier
from fedmr_flwr.models.packing import layout_of
from fedmr_flwr.training.devices import arithmetic, is_want_of_memory, pick_device, place, threads
from fedmr_flwr.training.evaluation import evaluate
from fedmr_flwr.wire.grids.in_process import InProcessGrid, failed, reason_of
from fedmr_flwr.wire.messages import ARRAYS, FLOATS
from fedmr_flwr.wire.npy import DeviceArray

T = TypeVar("T")

# Of a model's size in float32: what a sum in double precision takes, with all that it is made of.
_SUMS = 10


class GpuGrid(InProcessGrid):
    """A federation whose clients live on one GPU.

    Models stay there from round to round: what the clients are sent and what they reply are tensors that become bytes
    only if somebody asks for them. The training set lies there as uint8. Messages that ask for something else than
    training are answered one by one, as in the in-process engine.

    Args:
        settings: of the run.
        say: is told what concerns the user.
        device: where to train; the one of the settings if not given.
        slot: makes a slot of a model, its layout and the data.

    Raises:
        DeviceError: there is no such GPU.
    """

    def __init__(
        self,
        settings: Settings,
        say: Callable[[str], None] = lambda _: None,
        device: torch.device | None = None,
        slot: Callable[..., Slot] | None = None,
    ) -> None:
        super().__init__(app, settings.clients)
        self._settings, self._say = settings, say
        self._device = device or _gpu(settings)
        self._make_slot = slot or GraphSlot
        self._slots: list[Slot] = []
        # How many slots fit into the memory is found by trying; each needs a stream of its own.
        self._most = self._told = min(settings.clients_per_round, STREAMS)
        rule = algorithms.local_rule(settings)
        if not rule.captured:
            say(f"the local rule {type(rule).__name__} cannot be captured: its steps are launched kernel by kernel")

    def _answers(self, messages: Sequence[Message]) -> list[Message]:
        """Answer messages: train on all of them together, if that is what they ask for."""
        if not messages or any(message.metadata.message_type != MessageType.TRAIN for message in messages):
            return super()._answers(messages)
        with ExitStack() as stack:
            stack.enter_context(threads(self._settings.client_cpus))
            stack.enter_context(arithmetic(self._settings.precision, self._device))
            if self._device.type == "cuda":
                stack.enter_context(torch.cuda.device(self._device))
            return self._train(messages)

    def _train(self, messages: Sequence[Message]) -> list[Message]:
        """Train in as many waves as it takes, all of about the same size."""
        turns = [_Turn(message) for message in messages]
        with self._reserve(messages):
            while waiting := [turn for turn in turns if not turn.reply]:
                self._tell()
                waves = ceil(len(waiting) / self._most)
                self._wave(waiting[: ceil(len(waiting) / waves)])
        return [turn.reply for turn in turns if turn.reply]

    def _wave(self, turns: Sequence["_Turn"]) -> None:
        """Train some clients side by side; those who find no memory wait for the next wave, if it is for fewer."""
        running: list[_Turn] = []
        for turn in turns:
            turn.attempt(partial(turn.begin, self._context_of(turn.message), partial(self._slot_for, turns)))
            if turn.starved:
                break
            running = _stepped([*running, turn])  # the GPU has something to do while the host prepares the next
        while running:
            running = _stepped(running)
        for turn in turns:
            if turn.slot:
                turn.attempt(turn.end)
        for turn in turns:
            if turn.slot and turn.failure:  # who knows where it stands
                self._drop([turn.slot])
            turn.slot = None
        again = any(turn.starved for turn in turns) and self._fewer()
        for turn in turns:
            if turn.starved and again:
                turn.again()
            elif turn.failure:
                turn.reply = failed(turn.message, turn.failure)

    def _slot_for(self, turns: Sequence["_Turn"], client: Assignment) -> Slot:
        """Return the free slot that has seen most of a client's sizes of batches, or a new one if none is free."""
        taken = [turn.slot for turn in turns]
        free = [slot for slot in self._slots if slot not in taken]
        if not free:
            self._slots.append(self._make_slot(model=self._model(), **self._common))
            return self._slots[-1]
        sizes = sizes_of(client, self._settings.training.batch_size)
        return min(free, key=lambda slot: len(sizes - slot.sizes))

    def _fewer(self) -> bool:
        """Train fewer clients at a time, without the slots that are too many; tell whether that is possible."""
        if self._most == 1:
            return False
        self._most = max(1, min(len(self._slots), self._most - 1))
        self._drop(self._slots[self._most :])
        self._give_memory_back()
        return True

    def _drop(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            slot.close()
            self._slots.remove(slot)

    def _give_memory_back(self) -> None:
        """Free what slots have held that are there no more."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def _tell(self) -> None:
        """Say how many clients train at a time, if they have become fewer."""
        if self._most < self._told:
            self._told = self._most
            self._say(f"the GPU has memory for {self._most} clients at a time: a round is trained in waves")

    @contextmanager
    def _reserve(self, messages: Sequence[Message]) -> Iterator[None]:
        """Hold the memory that the server needs after the training, so that the slots do not take it."""
        held = None
        while held is None:
            try:
                held = torch.empty(self._for_server(messages), dtype=torch.uint8, device=self._device)
            except RuntimeError as error:
                if not is_want_of_memory(error):
                    raise
            if held is None and not (self._slots and self._fewer()):
                break
        yield

    def _for_server(self, messages: Sequence[Message]) -> int:
        """Return the bytes of what the server makes after a training: scores, sums, and at first the next models.

        Later the next models take the place of those that have been sent.
        """
        if self._device.type != "cuda":
            return 0
        if not self._strategy.accepts_device_models:
            return self._for_scoring
        sent = messages[0].content.array_records[ARRAYS].get(FLOATS)
        vectors = _SUMS + (0 if isinstance(sent, DeviceArray) else self._strategy.slots)
        return self._for_scoring + vectors * 4 * self._strategy.codec.layout.size

    @cached_property
    def _strategy(self) -> ServerStrategy[Any]:
        """Another one like the server's, to be asked what it needs."""
        return algorithms.create(self._settings, self._common["layout"])

    @cached_property
    def _for_scoring(self) -> int:
        """The bytes that it takes to score a model; found by trying."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before: int = torch.cuda.memory_reserved()
        evaluate(self._model(), self._dataset, self._dataset.test.to(self._device), self._device)
        return torch.cuda.max_memory_reserved() - before

    def _model(self) -> Classifier:
        model = deepcopy(self._untrained)
        place(model, self._device, self._settings.precision)
        return model

    @cached_property
    def _dataset(self) -> Dataset:
        return datasets.load(self._settings.data, self._settings.data_dir)

    @cached_property
    def _untrained(self) -> Classifier:
        return models.build(self._settings.model.name, self._dataset.input_shape, self._dataset.classes)

    @cached_property
    def _common(self) -> dict[str, Any]:
        """What all slots share: the training set on the GPU, above all."""
        try:
            examples = self._dataset.train.to(self._device)
        except torch.OutOfMemoryError:
            raise EngineError("the training set does not fit the GPU's memory; use engine=in-process") from None
        return {
            "layout": layout_of(self._untrained),
            "dataset": self._dataset,
            "examples": examples,
            "settings": self._settings,
            "largest": Simulated(self._settings, 0).largest,
        }


class _Turn:
    """A client's way from its message to its reply, or to its failure.

    Attributes:
        message: what it is asked for.
        reply: None until it has one.
        failure: what went wrong, in one line.
        starved: whether that was want of memory.
        slot: where it trains, while it does.
    """

    def __init__(self, message: Message) -> None:
        self.message = message
        self.reply: Message | None = None
        self.again()

    def again(self) -> None:
        """Begin from the beginning."""
        self.failure: str | None = None
        self.starved = False
        self.slot: Slot | None = None

    def attempt(self, act: Callable[[], T]) -> T | None:
        """Do something unless the client has failed; as under Flower, whatever it raises is this client's failure."""
        if self.failure:
            return None
        try:
            return act()
        except Exception as error:  # not kept: it would hold on to all that was there where it was raised
            self.failure, self.starved = reason_of(error), is_want_of_memory(error)
            return None

    def begin(self, context: Context, slot_for: Callable[[Assignment], Slot]) -> None:
        """Put the client into a slot."""
        self._client = Assignment(self.message, context)
        self.slot = slot_for(self._client)
        self.slot.begin(self._client)

    def step(self) -> bool:
        """Launch the client's next step, if there is one."""
        assert self.slot
        return self.slot.step()

    def end(self) -> None:
        """Make the reply."""
        assert self.slot
        self.reply = self._client.reply(*self.slot.end())


def _stepped(running: Sequence[_Turn]) -> list[_Turn]:
    """Launch a step of each client in turn, so that no stream waits for the host; return those that have more."""
    return [turn for turn in running if turn.attempt(turn.step)]


def _gpu(settings: Settings) -> torch.device:
    """Return the run's GPU.

    Raises:
        DeviceError: there is none, or the settings name a CPU.
    """
    device = pick_device(settings.device)
    if device.type == "cpu":
        why = "device is cpu" if settings.device == "cpu" else "there is no CUDA device here"
        raise DeviceError(f"engine gpu: {why}; use engine=in-process or engine=ray on a CPU")
    return device
