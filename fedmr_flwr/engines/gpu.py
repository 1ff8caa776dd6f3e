"""The one-GPU engine: a Grid whose clients train side by side on one card, all of a round at once if they fit."""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from flwr.app import Context, Message, MessageType

from fedmr_flwr import algorithms, models
from fedmr_flwr.client import Training, app
from fedmr_flwr.config import Settings
from fedmr_flwr.data import datasets
from fedmr_flwr.data.base import Dataset
from fedmr_flwr.engines.graphs import GraphSlot
from fedmr_flwr.engines.in_process import InProcessGrid, failed, named
from fedmr_flwr.engines.slots import Slot
from fedmr_flwr.errors import DeviceError
from fedmr_flwr.models.base import Classifier
from fedmr_flwr.training import arithmetic, layout_of, pick_device, place, threads

T = TypeVar("T")


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
        # How many slots fit into the memory; found by trying.
        self._most = settings.clients_per_round
        rule = algorithms.local_rule(settings)
        if not rule.captured:
            say(f"the local rule {type(rule).__name__} cannot be captured: its steps are launched kernel by kernel")

    def _answers(self, messages: Sequence[Message]) -> list[Message]:
        """Answer a round's messages, those that ask for training together."""
        apart = [message.metadata.message_type == MessageType.TRAIN for message in messages]
        alone = [message for message, train in zip(messages, apart, strict=True) if not train]
        with ExitStack() as stack:
            stack.enter_context(threads(self._settings.client_cpus))
            stack.enter_context(arithmetic(self._settings.precision, self._device))
            if self._device.type == "cuda":
                stack.enter_context(torch.cuda.device(self._device))
            trained = iter(self._train([message for message, train in zip(messages, apart, strict=True) if train]))
        others = iter(super()._answers(alone))
        return [next(trained if train else others) for train in apart]

    def _train(self, messages: Sequence[Message]) -> list[Message]:
        """Train in as many waves as it takes."""
        replies: dict[int, Message] = {}
        waiting = deque(enumerate(messages))
        while waiting:
            wave = [waiting.popleft() for _ in range(min(len(waiting), self._most))]
            answered = self._wave([message for _, message in wave])
            replies |= {at: reply for (at, _), reply in zip(wave, answered, strict=True) if reply}
            waiting.extendleft(item for item, reply in reversed([*zip(wave, answered, strict=True)]) if not reply)
        return [replies[at] for at in range(len(messages))]

    def _wave(self, messages: Sequence[Message]) -> list[Message | None]:
        """Train some clients side by side.

        Returns:
            Their replies; None for those who found no memory, if it is enough for fewer.
        """
        jobs = [_Job(message) for message in messages]
        for at, job in enumerate(jobs):
            job.attempt(partial(job.begin, partial(self._slot, at), self._context_of(job.message)))
        running = [job for job in jobs if not job.error]
        while running:  # a step of each in turn, so that no stream waits for the host
            running = [job for job in running if job.attempt(job.step)]
        for job in jobs:
            job.attempt(job.end)
        fit = sum(not isinstance(job.error, torch.OutOfMemoryError) for job in jobs)
        if fit < len(jobs) and self._most > 1:
            self._most = max(1, min(fit, self._most - 1))
            self._say(f"the GPU has memory for {self._most} clients at a time: a round is trained in waves")
            self._clear()
            return [None if isinstance(job.error, torch.OutOfMemoryError) else self._reply(job) for job in jobs]
        return [self._reply(job) for job in jobs]

    def _reply(self, job: "_Job") -> Message:
        if job.error:
            self._slots = [slot for slot in self._slots if slot is not job.slot]  # who knows where it stands
            return failed(job.message, job.error)
        assert job.reply
        return named(job.reply)

    def _slot(self, at: int) -> Slot:
        """Return one of the slots, or make it."""
        while at >= len(self._slots):
            self._slots.append(self._make_slot(model=self._model(), **self._common))
        return self._slots[at]

    def _clear(self) -> None:
        """Give back the memory of all slots."""
        self._slots = []
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def _model(self) -> Classifier:
        dataset = self._dataset
        model = models.build(self._settings.model.name, dataset.input_shape, dataset.classes)
        place(model, self._device, self._settings.precision)
        return model

    @cached_property
    def _dataset(self) -> Dataset:
        return datasets.load(self._settings.data, self._settings.data_dir)

    @cached_property
    def _common(self) -> dict[str, Any]:
        """What all slots share: the training set on the GPU, above all."""
        return {
            "layout": layout_of(self._model()),
            "dataset": self._dataset,
            "examples": self._dataset.train.to(self._device),
            "settings": self._settings,
        }


class _Job:
    """A client of a wave, from its message to its reply or its failure."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self.error: Exception | None = None
        self.reply: Message | None = None
        self.slot: Slot | None = None

    def attempt(self, act: Callable[[], T]) -> T | None:
        """Do something unless the client has failed; as under Flower, whatever it raises is this client's failure."""
        try:
            return None if self.error else act()
        except Exception as error:
            self.error = error
            return None

    def begin(self, slot: Callable[[], Slot], context: Context) -> None:
        """Put the client into a slot."""
        self.slot = slot()
        self.client = Training(self.message, context)
        self.slot.begin(self.client)

    def step(self) -> bool:
        """Launch the client's next step, if there is one."""
        assert self.slot
        return self.slot.step()

    def end(self) -> None:
        """Make the reply."""
        assert self.slot
        self.reply = self.client.reply(*self.slot.end())


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
