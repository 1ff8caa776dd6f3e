"""A lane: one client's local training, step by step."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmr_flwr.config.training import Precision, Training
from fedmr_flwr.core.layout import Floats
from fedmr_flwr.data import augmentation
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.models import layers
from fedmr_flwr.models.base import Dropout
from fedmr_flwr.training.devices import default_generators, generators_of, to_input
from fedmr_flwr.training.norms import single_values_allowed
from fedmr_flwr.training.optimizers import Optimizer
from fedmr_flwr.training.rules import LocalRule, Outcome, State, Task
from fedmr_flwr.training.schedule import Batch, BatchSchedule, batch_sizes


@dataclass(frozen=True)
class TrainResult:
    """The result of local training.

    Attributes:
        examples: examples of the client.
        loss: mean cross-entropy over all examples of all steps, measured during training.
        outcome: the result of the local rule.
    """

    examples: int
    loss: float
    outcome: Outcome = field(default_factory=Outcome)


class Lane:
    """A model and its optimiser that train one client after another: a fresh start, shuffled batches, cross-entropy.

    While a client trains, PyTorch's default generators are the client's own, so that a module such as `nn.Dropout`
    draws the same numbers whether lanes take turns or not.

    Args:
        model: on the device of the examples; it is trained in place.
        dataset: defines how inputs are prepared.
        examples: those of the client, or those of many clients together.
        training: of all clients; what differs between them, the learning rate and the epochs or steps, may be given
            with each.
        precision: of the arithmetic, see `arithmetic`.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        examples: Examples,
        training: Training,
        precision: Precision = "float32",
    ) -> None:
        self.model, self._dataset, self._examples = model.train(), dataset, examples
        self._training, self._precision = training, precision
        self._device = examples.labels.device
        self._optimizer = self._make_optimizer()
        self._total = torch.zeros((), device=self._device)
        # The gradient of the loss. Without it a GPU makes one in every step; with it PyTorch imports sympy.
        self._one = torch.ones((), device=self._device) if self._device.type == "cuda" else None
        self._generators = generators_of(self._device)

    def begin(
        self,
        rng: np.random.Generator,
        rule: LocalRule,
        received: Mapping[str, Floats] | None = None,
        kept: Mapping[str, NDArray[Any]] | None = None,
        indices: torch.Tensor | None = None,
        training: Training | None = None,
    ) -> None:
        """Prepare a client's training; the lane's model must be the one that the client received.

        Args:
            rng: of this client in this round.
            rule: the algorithm's local rule.
            received: vectors from the server besides the model, by name.
            kept: arrays that the client kept when it last took part, by name.
            indices: [N] int64, on the host, the client's examples; None for all.
            training: of this client in this round, see `work_of`; None: the lane's own.
        """
        training = training or self._training
        self._optimizer.restart(training)
        self._total.zero_()
        # Streams of their own, so that a rule's draws do not change the order of the examples.
        for_rule, for_modules = rng.spawn(2)  # does not draw from the stream itself
        if any(isinstance(module, Dropout) for module in self.model.modules()):
            # Their seed came from the stream itself before other modules had one, and their results must not change.
            for_modules = rng
        seed = int(for_modules.integers(2**63))
        for generator in self._generators:
            generator.manual_seed(seed)
        labels = self._examples.labels if indices is None else self._examples.labels[indices.to(self._device)]
        self._rule, self._task = rule, Task(labels, training, for_rule, received or {}, kept or {})
        with default_generators(self._generators):
            self._state = self._hold(rule.begin(self.model, self._task))
        schedule = BatchSchedule.draw(len(labels), self._examples.inputs.shape[2:], training, rng)
        order = schedule.order if indices is None else indices[schedule.order]
        self._load(BatchSchedule(order, schedule.changes))
        self._left = batch_sizes(len(labels), training)
        self._steps = self._seen = 0

    def step(self) -> bool:
        """Train on the next batch, without waiting for the device; return whether one was left."""
        with default_generators(self._generators):
            return self._step()

    def run(self) -> TrainResult:
        """Train on all remaining batches."""
        with default_generators(self._generators):
            while self._step():
                pass
        return self.end()

    def end(self) -> TrainResult:
        """Return the result of the training, after its last step."""
        with default_generators(self._generators):
            outcome = self._rule.end(self.model, self._state, self._task, self._steps)
        # The only read from the device in a training.
        return TrainResult(len(self._task.labels), self._total.item() / self._seen, outcome)

    def _step(self) -> bool:
        size = next(self._left, 0)
        if size:
            with single_values_allowed(self.model) if size == 1 else nullcontext():
                self._run(size)
            self._steps += 1
            self._seen += size
        return size > 0

    def _train_batch(self, size: int) -> None:
        """Train on the next `size` examples; everything that depends on the client is in tensors."""
        batch = self._next_batch(size)
        images = batch.inputs
        if batch.changes is not None:
            images = augmentation.crop_and_flip(images, batch.changes, self._dataset.background)
        inputs = to_input(self._dataset, images, self._precision)
        bf16 = self._precision == "bf16"
        # Without autocast's cache of converted weights: a captured step would keep using those of its first client.
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            backward = partial(self._backward, inputs, batch.labels, batch.counts)
            loss = self._rule.gradients(self.model, self._state, backward)
            with torch.no_grad():
                self._rule.adjust(self.model, self._state)
            if self._training.clip_norm:
                nn.utils.clip_grad_norm_(self.model.parameters(), self._training.clip_norm)
            self._update()
        # On the device: reading it would wait for every step.
        if batch.counts is None:
            self._total.add_(loss, alpha=size)
        else:
            self._total.addcmul_(loss, batch.counts.to(loss.dtype))

    def _backward(
        self, inputs: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Set the gradients of a batch and return its mean cross-entropy."""
        # None instead of zeros saves a kernel for each parameter, and lets rules skip parameters without a gradient.
        self.model.zero_grad(set_to_none=True)
        logits, extra = self._rule.forward(self.model, self._state, inputs, labels)
        loss = layers.cross_entropy(logits, labels, self._training.label_smoothing, counts)
        (loss if extra is None else loss + extra).backward(self._one)  # type: ignore[no-untyped-call]
        return loss.detach()

    # The one-GPU engine overrides the following methods, to keep tensors in place and to replay steps.

    def _run(self, size: int) -> None:
        """Perform the step of the next `size` examples."""
        self._train_batch(size)

    def _hold(self, state: State) -> State:
        """Return the state to use for a client: on the CPU, the given one."""
        return state

    def _load(self, schedule: BatchSchedule) -> None:
        """Copy a client's schedule to the device."""
        self._order = schedule.order.to(self._device)
        self._changes = None if schedule.changes is None else schedule.changes.to(self._device)
        self._position = 0

    def _make_optimizer(self) -> Optimizer:
        """Create the optimiser."""
        return Optimizer(self.model.parameters(), self._training)

    def _update(self) -> None:
        """Change the weights by their gradients."""
        self._optimizer.step([parameter.grad for parameter in self.model.parameters()])

    def _next_batch(self, size: int) -> Batch:
        """Return the next `size` examples of the schedule."""
        part = slice(self._position, self._position + size)
        self._position += size
        chosen = self._order[part]
        changes = None if self._changes is None else self._changes[part]
        return Batch(self._examples.inputs[chosen], self._examples.labels[chosen], changes)
