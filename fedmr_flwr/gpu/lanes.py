"""Lanes for the GPU: each trains one client after another in the same tensors, so that steps can be replayed."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmr_flwr.client.app import TrainRequest
from fedmr_flwr.client.environment import SimulatedEnvironment
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.gpu import states
from fedmr_flwr.models.packing import overwrite, pack_on_device, tensors_of
from fedmr_flwr.training.lane import Lane, TrainResult
from fedmr_flwr.training.optimizers import Optimizer
from fedmr_flwr.training.rules import State
from fedmr_flwr.training.schedule import Batch, BatchSchedule, epoch_sizes, longest_order

# The most kinds of state in a lane; MOON, for instance, has two: with an earlier model and without.
_KINDS = 8


class ResidentLane(Lane):
    """A lane whose model, schedule and states stay in the same tensors.

    Momentum starts from zeros here and from the first gradient in `fit`; the sums are the same.

    Args:
        model: on the device; the lane's own.
        layout: of the model.
        dataset: how to prepare examples.
        examples: the whole training set, on the device.
        settings: of the run.
        largest: the number of examples of the client with the most.

    Attributes:
        sizes: of the batches that it has trained on; another size takes longer at first.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        dataset: Dataset,
        examples: Examples,
        settings: Settings,
        largest: int,
    ) -> None:
        super().__init__(model, dataset, examples, settings.training, settings.precision)
        self._layout = layout
        self._tensors = list(tensors_of(model).values())
        self._states: dict[states.Kind, State] = {}
        self.sizes: set[int] = set()
        # The position is on the device, because a replay has to advance it.
        self._first = torch.arange(settings.training.batch_size, device=self._device)
        self._cursor = self._first.clone()
        # Long enough for every client: a longer tensor later would have another address, and no graph would know it.
        length = longest_order(largest, settings.training)
        self._order = torch.zeros(length, dtype=torch.long, device=self._device)
        self._changes = None
        if settings.training.augment:
            self._changes = torch.zeros(length, 3, dtype=torch.long, device=self._device)

    def take(self, client: TrainRequest) -> None:
        """Assign a client, with the model that it received."""
        overwrite(self._tensors, client.received, self._layout)
        client.measure("before", self.model)
        indices = torch.from_numpy(indices_of(client))
        self.begin(client.rng, client.rule, client.vectors, client.kept, indices, client.training)
        self.sizes |= sizes_of(client, self._training.batch_size)
        self._ready()

    def end(self) -> TrainResult:
        """Return the result of the training, after its last step."""
        self._finished()
        return super().end()

    def packed(self) -> Packed:
        """Return the model, its floats on the device."""
        return pack_on_device(self._tensors, self._layout)

    def close(self) -> None:
        """Wait until everything that the lane has launched has finished, so that its memory can be reused."""

    def _ready(self) -> None:
        """Act between a client's assignment and its first step."""

    def _finished(self) -> None:
        """Act between a client's last step and its result."""

    def _hold(self, state: State) -> State:
        """Copy a state into the tensors of an earlier one of its kind, if there is one."""
        if not self._rule.capturable:
            self._kind = None
            return state
        self._kind = states.kind_of(state)
        if self._kind in self._states:
            states.copy_into(self._states[self._kind], state)
        else:
            if len(self._states) == _KINDS:
                self._forget()
            self._states[self._kind] = state
        return self._states[self._kind]

    def _forget(self) -> None:
        """Drop all states, and everything that depends on their tensors."""
        self._states.clear()
        self.sizes.clear()

    def _make_optimizer(self) -> Optimizer:
        return Optimizer(self.model.parameters(), self._training, captured=True)

    def _load(self, schedule: BatchSchedule) -> None:
        count = len(schedule.order)
        # Into the same tensor, from which a captured step reads its order.
        self._order[:count] = schedule.order.to(self._device)
        if self._changes is not None and schedule.changes is not None:
            self._changes[:count] = schedule.changes.to(self._device)
        self._cursor.copy_(self._first)

    def _next_batch(self, size: int) -> Batch:
        places = self._cursor[:size]
        chosen = self._order.index_select(0, places)
        changes = None if self._changes is None else self._changes.index_select(0, places)
        batch = Batch(
            self._examples.inputs.index_select(0, chosen), self._examples.labels.index_select(0, chosen), changes
        )
        self._cursor += size
        return batch


def sizes_of(client: TrainRequest, batch_size: int) -> set[int]:
    """Return the batch sizes of a client."""
    return set(epoch_sizes(len(indices_of(client)), batch_size))


def indices_of(client: TrainRequest) -> NDArray[np.int64]:
    """Return the indices of a client's examples."""
    assert isinstance(client.environment, SimulatedEnvironment)
    return client.environment.indices
