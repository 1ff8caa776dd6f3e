"""Local training: the one SGD loop of every client, and the evaluation of a model."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

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
        labels: [N] int64 of the client's examples, on the device of the model.
        training: how they are trained on.
        rng: for draws of the rule's own; what it draws changes nothing else.
    """

    labels: torch.Tensor
    training: config.Training
    rng: np.random.Generator


class LocalRule:
    """What an algorithm changes in local training; this one changes nothing.

    An object serves one client in one round. What it does in a step may be recorded and replayed on a GPU, for other
    clients, too. So it must not wait for the device (`.item()`, printing, branches on the values of tensors), and of
    this client it may use only tensors, networks and `torch.Generator`s that `begin` has made and kept as attributes.

    Args:
        options: of the type `Options`; None takes every default.

    Attributes:
        exchanges: names of the vectors that travel to and from the server besides the model; a rule that has
            some works only with the strategy that knows them.
        keeps: whether the client keeps something for its next participation.
        captured: whether its steps may be recorded and replayed. False for one that must wait for the device.
        received: what the server sent besides the model: vectors [.] float32 by name.
        kept: what the client kept of its last participation; empty if there was none, or if it is lost.
    """

    Options: ClassVar[type[config.Section]] = config.Section
    exchanges: ClassVar[tuple[str, ...]] = ()
    keeps: ClassVar[bool] = False
    captured: ClassVar[bool] = True

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


@dataclass(frozen=True)
class Course:
    """What a client goes through in a round, drawn before its first step.

    Attributes:
        order: [E, N] int64, in which order each of E epochs takes the N examples.
        changes: [E, N, 3] int64, how they are augmented, in the same order; None if they are not.
    """

    order: torch.Tensor
    changes: torch.Tensor | None

    @classmethod
    def draw(
        cls, examples: int, size: tuple[int, ...], training: config.Training, rng: np.random.Generator
    ) -> "Course":
        """Draw a client's course.

        Args:
            examples: N.
            size: of an image, [H, W]; of no account for texts.
            training: epochs and augmentation.
            rng: of this client in this round.
        """
        orders, changes = [], []
        for _ in range(training.local_epochs):
            orders.append(torch.from_numpy(rng.permutation(examples)))
            if training.augment:
                changes.append(augmentation.draw(examples, size, rng)[orders[-1]])
        return cls(torch.stack(orders), torch.stack(changes) if changes else None)


def fit(
    model: nn.Module,
    dataset: Dataset,
    examples: Examples,
    training: config.Training,
    rng: np.random.Generator,
    rule: LocalRule | None = None,
    precision: config.Precision = "float32",
) -> Fit:
    """Train a model in place: fresh SGD, shuffled batches, cross-entropy, and what a rule changes of it.

    Args:
        model: in any mode, on the device of the examples; its state_dict is changed.
        dataset: how to prepare the examples.
        examples: at least one.
        training: learning rate, momentum, epochs, batch size and augmentation.
        rng: draws the order of the examples, how they are augmented, and what dropout drops.
        rule: what an algorithm changes; None changes nothing.
        precision: of the arithmetic, as `arithmetic` has it.
    """
    rule = rule or LocalRule()
    model.train()
    device, count = examples.labels.device, len(examples)
    seed_dropout(model, device, rng)
    optimizer = torch.optim.SGD(model.parameters(), training.lr, training.momentum, fused=True)
    total = torch.zeros((), device=device)
    rule.begin(model, Task(examples.labels, training, rng.spawn(1)[0]))
    course = Course.draw(count, examples.inputs.shape[2:], training, rng)
    steps = 0
    for epoch in range(training.local_epochs):
        order = course.order[epoch].to(device)
        changes = None if course.changes is None else course.changes[epoch].to(device)
        for start in range(0, count, training.batch_size):
            part = slice(start, start + training.batch_size)
            batch = Batch(examples.inputs[order[part]], examples.labels[order[part]])
            batch = batch if changes is None else batch.augmented(changes[part], dataset)
            loss = train_step(model, optimizer, rule, dataset, batch, precision)
            total.add_(loss, alpha=len(batch.labels))  # on the device: reading it here would wait for every step
            steps += 1
    return Fit(count, total.item() / (count * training.local_epochs), rule.end(model, steps))


class Batch(NamedTuple):
    """The examples of a step.

    Attributes:
        inputs: [B, ...] uint8.
        labels: [B] int64.
    """

    inputs: torch.Tensor
    labels: torch.Tensor

    def augmented(self, changes: torch.Tensor, dataset: Dataset) -> "Batch":
        """Return it with its images changed as [B, 3] `changes` say."""
        return Batch(augmentation.crop_and_flip(self.inputs, changes, dataset.background), self.labels)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rule: LocalRule,
    dataset: Dataset,
    batch: Batch,
    precision: config.Precision,
) -> torch.Tensor:
    """Train on one batch and return its mean loss, without waiting for the device.

    Args:
        model: in training mode.
        optimizer: of its parameters.
        rule: what an algorithm changes.
        dataset: how to prepare the examples.
        batch: at least one example.
        precision: of the arithmetic, as `arithmetic` has it.
    """
    inputs = to_input(dataset, batch.inputs, precision)
    # Without its cache of converted weights, which must not outlive a recorded step.
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
        return rule.step(model, optimizer, inputs, batch.labels)


def seed_dropout(model: nn.Module, device: torch.device, rng: np.random.Generator) -> None:
    """Start a model's dropouts anew, with a generator of their own; without dropout nothing is drawn."""
    dropouts = [module for module in model.modules() if isinstance(module, Dropout)]
    if dropouts:
        generator = dropouts[0].generator or torch.Generator(device)
        generator.manual_seed(int(rng.integers(2**63)))
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


def to_input(dataset: Dataset, inputs: torch.Tensor, precision: config.Precision = "float32") -> torch.Tensor:
    """Turn uint8 inputs into what a model takes, on the device where they are.

    Args:
        dataset: how to prepare them.
        inputs: [B, C, H, W] or [B, T] uint8.
        precision: of the arithmetic to come.

    Returns:
        [B, C, H, W] float32, in the memory format that is fastest there, or [B, T] as it is.
    """
    prepared = dataset.prepare(inputs)
    if prepared.ndim < 4:
        return prepared
    return prepared.contiguous(memory_format=_memory_format(inputs.device, precision))


def place(model: nn.Module, device: torch.device, precision: config.Precision = "float32") -> None:
    """Move a model to a device, in the memory format that is fastest there."""
    model.to(device).to(memory_format=_memory_format(device, precision))


def _memory_format(device: torch.device, precision: config.Precision) -> torch.memory_format:
    """Return the faster order of an image's values: channels last takes half the time on a CPU, and with bf16."""
    last = device.type == "cpu" or precision == "bf16"
    return torch.channels_last if last else torch.contiguous_format


@contextmanager
def arithmetic(precision: config.Precision, device: torch.device) -> Iterator[None]:
    """Compute on a CUDA device in some precision inside the block, and as before after it.

    Args:
        precision: float32, by deterministic algorithms and the same in every run; tf32, products of ten bits, or
            bf16, of seven, by whatever algorithms PyTorch chooses.
        device: where to compute; a CPU knows only float32, and is always deterministic.

    Raises:
        DeviceError: the device is a CPU, and another precision is asked for.
    """
    if device.type == "cpu":
        if precision != "float32":
            raise DeviceError(f"precision is {precision}, which needs a CUDA device; leave it out on a CPU")
        yield
        return
    exact = precision == "float32"
    # Read when cuBLAS is first used; without it, products of matrices differ from run to run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    deterministic: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    filled, warns = deterministic.fill_uninitialized_memory, torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.use_deterministic_algorithms(exact)
        deterministic.fill_uninitialized_memory = False  # a kernel for every new tensor, which finds only bugs
        torch.set_float32_matmul_precision("highest" if exact else "high")
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=exact, allow_tf32=not exact):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=warns)
        torch.set_float32_matmul_precision(before[1])
        deterministic.fill_uninitialized_memory = filled


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


def is_want_of_memory(error: BaseException | None) -> bool:
    """Tell whether an exception, or what it came of, says that a device has no memory left.

    PyTorch's allocator has a class for it; CUDA itself and its libraries only have words.
    """
    if error is None:
        return False
    said = str(error).lower()
    wanting = isinstance(error, torch.OutOfMemoryError) or "out of memory" in said or "alloc_failed" in said
    return wanting or is_want_of_memory(error.__cause__ or error.__context__)


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


def unpack(packed: Packed, layout: Layout, model: nn.Module) -> None:
    """Overwrite a model's state_dict, buffers included, with two flat vectors.

    Args:
        packed: [P] floats and [Q] ints; may be read-only, or tensors.
        layout: of the model.
        model: on any device.
    """
    overwrite(list(model.state_dict().values()), packed, layout)


@torch.no_grad()
def overwrite(tensors: list[torch.Tensor], packed: Packed, layout: Layout) -> None:
    """Overwrite a model's tensors, in the order of the state_dict, with two flat vectors, as `unpack`."""
    # All tensors in a few kernels, which copy only between tensors of one type and the same order of values.
    alike: dict[tuple[torch.dtype, bool], tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for tensor, values in zip(tensors, views(packed, layout, tensors[0].device), strict=True):
        own, given = alike.setdefault((tensor.dtype, tensor.stride() == values.stride()), ([], []))
        own.append(tensor)
        given.append(values)
    for own, given in alike.values():
        torch._foreach_copy_(own, given)


def views(packed: Packed, layout: Layout, device: torch.device) -> list[torch.Tensor]:
    """Return a model's tensors, in the order of the state_dict, as views of two vectors on a device.

    Args:
        packed: [P] floats and [Q] ints; NumPy's are copied there, tensors lie there.
        layout: of the model.
        device: where.

    Raises:
        ValueError: the vectors are not of the layout's lengths.
    """
    layout.check(packed)
    floats, ints = (
        vector if isinstance(vector, torch.Tensor) else torch.tensor(vector).to(device) for vector in packed
    )
    return [(ints if entry.integer else floats)[entry.columns].view(entry.shape) for entry in layout.entries]
