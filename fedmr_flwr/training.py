"""Local training: the one SGD loop of every client, and the evaluation of a model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fedmr_flwr import config
from fedmr_flwr.data import augmentation
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.errors import DeviceError
from fedmr_flwr.layout import Floats, Layout, Packed
from fedmr_flwr.models.base import Dropout


@dataclass(frozen=True)
class Outcome:
    """What a local rule leaves behind, besides the trained model.

    Attributes:
        returned: vectors [.] float32 for the server, by name.
        kept: arrays for the client's next participation, by name.
    """

    returned: Mapping[str, Floats] = field(default_factory=dict)
    kept: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """What local training did.

    Attributes:
        examples: examples of the client.
        loss: mean training loss over all examples of all epochs, measured as training went on.
        outcome: what the local rule leaves behind.
    """

    examples: int
    loss: float
    outcome: Outcome = Outcome()


@dataclass(frozen=True)
class Task:
    """What a local rule may know of the client that it serves.

    Attributes:
        examples: of the client, on the device of the model.
        training: how they are trained on.
        rng: for draws of the rule's own; what it draws changes nothing else.
    """

    examples: Examples
    training: config.Training
    rng: np.random.Generator


class LocalRule:
    """What an algorithm changes in local training; this one changes nothing.

    An object serves one client in one round. What it does in a step must not wait for the device (`.item()`,
    printing, branches on the values of tensors), so that steps can be recorded and replayed on a GPU.

    Args:
        options: of the type `Options`; None takes every default.

    Attributes:
        exchanges: names of the vectors that travel to and from the server besides the model; a rule that has
            some works only with the strategy that knows them.
        keeps: whether the client keeps something for its next participation.
        received: what the server sent besides the model: vectors [.] float32 by name.
        kept: what the client kept of its last participation; empty if there was none, or if it is lost.
    """

    Options: ClassVar[type[config.Section]] = config.Section
    exchanges: ClassVar[tuple[str, ...]] = ()
    keeps: ClassVar[bool] = False

    def __init__(self, options: config.Section | None = None) -> None:
        self.options: Any = options or self.Options()
        self.received: Mapping[str, Floats] = {}
        self.kept: Mapping[str, NDArray[Any]] = {}

    def begin(self, model: nn.Module, task: Task) -> None:
        """Look at the model that was received, before the first step."""

    def end(self, model: nn.Module, steps: int) -> Outcome:
        """Look at the trained model, after so many steps of the optimiser; say what to return and what to keep."""
        return Outcome()

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Train on one batch.

        Args:
            model: in training mode.
            optimizer: of its parameters.
            inputs: [B, ...] what the model takes.
            labels: [B] int64.

        Returns:
            The batch's mean loss, detached.
        """
        optimizer.zero_grad(set_to_none=True)
        loss = self.loss(model, inputs, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.adjust(model)
        optimizer.step()
        return loss.detach()

    def loss(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch: cross-entropy."""
        return functional.cross_entropy(model(inputs), labels)

    def adjust(self, model: nn.Module) -> None:
        """Change the gradients before the optimiser uses them."""


def fit(
    model: nn.Module,
    dataset: Dataset,
    examples: Examples,
    training: config.Training,
    rng: np.random.Generator,
    rule: LocalRule | None = None,
) -> Fit:
    """Train a model in place: fresh SGD, shuffled batches, cross-entropy, and what a rule changes of it.

    Args:
        model: in any mode, on the device of the examples; its state_dict is changed.
        dataset: how to prepare the examples.
        examples: at least one.
        training: learning rate, momentum, epochs, batch size and augmentation.
        rng: draws the order of the examples, how they are augmented, and what dropout drops.
        rule: what an algorithm changes; None changes nothing.
    """
    rule = rule or LocalRule()
    model.train()
    inputs, labels = examples.inputs, examples.labels
    device, count = inputs.device, len(examples)
    _seed_dropout(model, device, rng)
    optimizer = torch.optim.SGD(model.parameters(), training.lr, training.momentum, fused=True)
    total = torch.zeros((), device=device)
    rule.begin(model, Task(examples, training, rng.spawn(1)[0]))
    steps = 0
    for _ in range(training.local_epochs):
        order = torch.from_numpy(rng.permutation(count)).to(device)
        changes = augmentation.draw(count, inputs.shape[2:], rng).to(device) if training.augment else None
        for start in range(0, count, training.batch_size):
            batch = order[start : start + training.batch_size]
            chosen = inputs[batch]
            if changes is not None:
                chosen = augmentation.crop_and_flip(chosen, changes[batch], dataset.background)
            loss = rule.step(model, optimizer, to_input(dataset, chosen), labels[batch])
            total += loss * len(batch)  # on the device: reading it here would wait for every step
            steps += 1
    return Fit(count, total.item() / (count * training.local_epochs), rule.end(model, steps))


def _seed_dropout(model: nn.Module, device: torch.device, rng: np.random.Generator) -> None:
    """Give a model's dropouts a generator of this client's own; without dropout nothing is drawn."""
    dropouts = [module for module in model.modules() if isinstance(module, Dropout)]
    if dropouts:
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
        for dropout in dropouts:
            dropout.generator = generator


@dataclass(frozen=True)
class Score:
    """How good a model is on a set of examples.

    Attributes:
        loss: mean cross-entropy.
        accuracy: share of correct answers, 0 to 1.
        examples: number of examples.
    """

    loss: float
    accuracy: float
    examples: int


@torch.inference_mode()
def evaluate(
    model: nn.Module, dataset: Dataset, examples: Examples, device: torch.device, batch_size: int = 1000
) -> Score:
    """Score a model.

    Args:
        model: on `device`; put into evaluation mode.
        dataset: how to prepare the examples.
        examples: what to score it on.
        device: where to compute.
        batch_size: examples at a time.
    """
    model.eval()
    loss, correct = torch.zeros((), device=device), torch.zeros((), dtype=torch.long, device=device)
    for start in range(0, len(examples), batch_size):
        labels = examples.labels[start : start + batch_size].to(device)
        logits = model(to_input(dataset, examples.inputs[start : start + batch_size].to(device)))
        loss += functional.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
    return Score(loss.item() / len(examples), correct.item() / len(examples), len(examples))


def to_input(dataset: Dataset, inputs: torch.Tensor) -> torch.Tensor:
    """Turn uint8 inputs into what a model takes, on the device where they are.

    Args:
        dataset: how to prepare them.
        inputs: [B, C, H, W] or [B, T] uint8.

    Returns:
        [B, C, H, W] float32, in the memory format that is fastest there, or [B, T] as it is.
    """
    prepared = dataset.prepare(inputs)
    return prepared.contiguous(memory_format=_memory_format(inputs.device)) if prepared.ndim == 4 else prepared


def place(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device, in the memory format that is fastest there."""
    model.to(device).to(memory_format=_memory_format(device))


def _memory_format(device: torch.device) -> torch.memory_format:
    """Return the faster order of an image's values: channels last takes half the time on a CPU."""
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def pick_device(name: str) -> torch.device:
    """Turn a device's name into a device.

    Args:
        name: auto (CUDA where there is one), cpu, cuda or cuda:N.

    Raises:
        DeviceError: CUDA is asked for where there is none, or not that many.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device("cuda" if name == "auto" else name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise DeviceError(
            f"device is {name} but the number of CUDA devices here is {count}; use device=auto or device=cpu"
        )
    return device


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch use `count` CPU threads inside the block, and as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def layout_of(model: nn.Module) -> Layout:
    """Return where a model's tensors lie in its packed form."""
    arrays = {name: tensor.numpy(force=True) for name, tensor in model.state_dict().items()}
    buffers = {name for name, _ in model.named_buffers()}
    return Layout.of(arrays, buffers, getattr(model, "blocks", ()))


def pack(model: nn.Module, layout: Layout) -> Packed:
    """Copy a model's state_dict into two flat vectors on the host."""
    return layout.pack({name: tensor.numpy(force=True) for name, tensor in model.state_dict().items()})


@torch.no_grad()
def unpack(packed: Packed, layout: Layout, model: nn.Module) -> None:
    """Overwrite a model's state_dict, buffers included, with two flat vectors.

    Args:
        packed: [P] floats and [Q] ints; may be read-only.
        layout: of the model.
        model: on any device.
    """
    arrays = layout.unpack(Packed(packed.floats.copy(), packed.ints.copy()))
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.from_numpy(arrays[name]))
