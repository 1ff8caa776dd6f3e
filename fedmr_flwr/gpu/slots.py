"""Slots: each trains one client after the other in tensors that keep their places, so that steps can be replayed."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from fedmr_flwr.client.app import Assignment
from fedmr_flwr.client.sites import Simulated
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.gpu import residents
from fedmr_flwr.models.base import Classifier
from fedmr_flwr.models.packing import overwrite
from fedmr_flwr.training.rules import LocalRule, Task
from fedmr_flwr.training.sgd import Batch, Course, Fit, seed_dropout, train_step

# So many kinds of local rule a slot knows at a time: MOON, for instance, has two, with an earlier model and without.
_KINDS = 8


class Slot:
    """A model, its optimiser, and a client's course, on one device.

    What `training.fit` does for a client, a slot does with the same draws and the same operations, so that the
    trained model is the same bit for bit. (Momentum begins as zeros here and as the first gradient there, which makes
    the same sum.)

    Args:
        model: on the device; the slot's own.
        layout: of the model.
        dataset: how to prepare examples.
        examples: the whole training set, on the device.
        settings: of the run.
        largest: examples of the largest client.

    Attributes:
        sizes: of the batches that it has trained on; those of another size take longer at first.
    """

    def __init__(
        self,
        model: Classifier,
        layout: Layout,
        dataset: Dataset,
        examples: Examples,
        settings: Settings,
        largest: int,
    ) -> None:
        self.model, self._layout, self._dataset, self._examples = model.train(), layout, dataset, examples
        self._training, self._precision = settings.training, settings.precision
        self._device = examples.labels.device
        self._tensors = list(model.state_dict().values())
        self._optimizer = torch.optim.SGD(model.parameters(), self._training.lr, self._training.momentum, fused=True)
        self._total = torch.zeros((), device=self._device)
        self._first = torch.arange(self._training.batch_size, device=self._device)
        self._places = self._first.clone()  # of the next batch, in the order
        self._rules: dict[residents.Kind, LocalRule] = {}
        self.sizes: set[int] = set()
        length = largest * self._training.local_epochs
        self._order = torch.zeros(length, dtype=torch.long, device=self._device)
        self._changes = torch.zeros(length, 3, dtype=torch.long, device=self._device)

    def begin(self, client: Assignment) -> None:
        """Take up a client."""
        training, rng = self._training, client.rng
        indices = torch.from_numpy(_indices(client))
        overwrite(self._tensors, client.received, self._layout)
        buffers = [state.get("momentum_buffer") for state in self._optimizer.state.values()]
        if momenta := [buffer for buffer in buffers if buffer is not None]:
            torch._foreach_zero_(momenta)
        self._total.zero_()
        self._places.copy_(self._first)
        seed_dropout(self.model, self._device, rng)
        labels = self._examples.labels[indices.to(self._device)]
        client.rule.begin(self.model, Task(labels, training, rng.spawn(1)[0]))
        self._settle(client.rule)
        course = Course.draw(len(indices), self._examples.inputs.shape[2:], training, rng)
        count = course.order.numel()
        self._order[:count] = indices[course.order].view(-1).to(self._device)
        if course.changes is not None:
            self._changes[:count] = course.changes.view(-1, 3).to(self._device)
        self._left = batches(len(indices), training.local_epochs, training.batch_size)
        self._count, self._steps = len(indices), 0

    def step(self) -> bool:
        """Go on by one batch, without waiting for the device; tell whether there was one left."""
        size = next(self._left, 0)
        if size:
            self._run(size)
            self.sizes.add(size)
            self._steps += 1
        return size > 0

    def close(self) -> None:
        """Wait until nothing that the slot has begun runs any more; then its memory may serve for something else."""

    def end(self) -> tuple[Packed, Fit]:
        """Return the trained model, its floats on the device, and what became of the training."""
        outcome = self._rule.end(self.model, self._steps)
        loss = self._total.item() / (self._count * self._training.local_epochs)
        return self._packed(), Fit(self._count, loss, outcome)

    def _packed(self) -> Packed:
        floats: list[torch.Tensor] = []
        ints: list[torch.Tensor] = []
        for tensor, entry in zip(self._tensors, self._layout.entries, strict=True):
            (ints if entry.integer else floats).append(tensor.detach().reshape(-1))
        counters = torch.cat(ints).numpy(force=True) if ints else np.empty(0, np.int64)
        return Packed(torch.cat(floats), counters)  # type: ignore[arg-type]

    def _run(self, size: int) -> None:
        """Train on the next batch."""
        self._train(size)

    def _train(self, size: int) -> None:
        """Train on the next `size` examples of the course; nothing here depends on the client but through tensors."""
        places = self._places[:size]
        chosen = self._order.index_select(0, places)
        batch = Batch(self._examples.inputs.index_select(0, chosen), self._examples.labels.index_select(0, chosen))
        if self._training.augment:
            batch = batch.augmented(self._changes.index_select(0, places), self._dataset)
        loss = train_step(self.model, self._optimizer, self._rule, self._dataset, batch, self._precision)
        self._total.add_(loss, alpha=size)
        self._places += size

    def _settle(self, rule: LocalRule) -> None:
        """Move what a rule has begun with into the tensors of an earlier rule of its kind, if there was one."""
        if not rule.captured:
            self._rule, self._kind = rule, None
            return
        kind = residents.kind_of(rule)
        if kind in self._rules:
            residents.move(rule, self._rules[kind])
        else:
            if len(self._rules) == _KINDS:
                self._forget()
            self._rules[kind] = rule
        self._rule, self._kind = self._rules[kind], kind

    def _forget(self) -> None:
        """Drop all rules, and what was made for their tensors."""
        self._rules.clear()
        self.sizes.clear()


def sizes_of(client: Assignment, batch_size: int) -> set[int]:
    """Return the sizes of a client's batches."""
    return set(batches(len(_indices(client)), 1, batch_size))


def _indices(client: Assignment) -> NDArray[np.int64]:
    """Return which examples a client has."""
    assert isinstance(client.site, Simulated)
    return client.site.indices


def batches(examples: int, epochs: int, batch_size: int) -> Iterator[int]:
    """List the sizes of all batches of a client's training: in every epoch the last one may be smaller.

    Args:
        examples: of the client.
        epochs: passes over them.
        batch_size: of all other batches.
    """
    for _ in range(epochs):
        for start in range(0, examples, batch_size):
            yield min(batch_size, examples - start)
