"""A stack: clients that train in lockstep, as one model whose layers and batches have a part for each of them.

Kernels of ten small models, on ten streams, wait for each other; here each of them serves all clients. A client has
the same bits as in a lane of its own: the kernels compute its part alone, in the same order.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fedmr_flwr.client.app import TrainRequest
from fedmr_flwr.config.training import Training
from fedmr_flwr.core.layout import Packed
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.gpu.lanes import ResidentLane, indices_of
from fedmr_flwr.models import layers
from fedmr_flwr.models.packing import overwrite, pack_on_device
from fedmr_flwr.training.lane import TrainResult
from fedmr_flwr.training.rules import LocalRule
from fedmr_flwr.training.schedule import Batch, BatchSchedule, batch_sizes, longest_order, step_count


class Share(NamedTuple):
    """A client's share of a stack's work.

    Attributes:
        indices: [N] of its examples.
        training: of the client in this round; only the epochs or steps may differ between those of a stack.
        rng: of the client in this round.
    """

    indices: NDArray[np.int64]
    training: Training
    rng: np.random.Generator


class StackLane(ResidentLane):
    """A lane that trains several clients at once, all by the plain rule.

    Those that have finished wait for the others: their models are copied after their last step, and no later step has
    an example of theirs.

    Args:
        **arguments: of `ResidentLane`; the model must be `stackable`.
    """

    def __init__(self, **arguments: Any) -> None:
        settings, largest = arguments["settings"], arguments["largest"]
        device, lanes = arguments["examples"].labels.device, settings.clients_per_round
        self._counts = torch.zeros(lanes, dtype=torch.int32, device=device)
        super().__init__(**(arguments | {"model": layers.stacked(arguments["model"], self._counts)}))
        # Of each lane, views of the stacked tensors.
        self._parts = [[tensor[lane] for tensor in self._tensors] for lane in range(lanes)]
        self._total, self._one = torch.zeros(lanes, device=device), torch.ones(lanes, device=device)
        self._rule, self._state, self._kind = LocalRule(), None, None
        self._checked = False
        self._batch_size = min(settings.training.batch_size, largest)
        # In the same tensors for all clients, because a captured step knows them by their addresses.
        length = longest_order(largest, settings.training)
        self._orders = torch.zeros(lanes, length, dtype=torch.long, device=device)
        steps = step_count(largest, settings.training)
        self._plan = torch.zeros(steps, lanes, 2, dtype=torch.long, device=device)
        self._at = torch.zeros((), dtype=torch.long, device=device)

    def take_all(self, clients: Sequence[TrainRequest]) -> None:
        """Assign up to K clients, with the models that they received."""
        for part, client in zip(self._parts, clients, strict=False):
            overwrite(part, client.received, self._layout)
        self.begin_all([Share(indices_of(client), client.training, client.rng) for client in clients])
        self._ready()

    def begin_all(self, shares: Sequence[Share]) -> None:
        """Prepare the training of up to K clients; the models must be those that they received."""
        self._optimizer.restart(shares[0].training)
        self._total.zero_()
        self._at.zero_()
        self._steps = 0
        orders, plan = np.zeros(self._orders.shape, np.int64), np.zeros(self._plan.shape, np.int64)
        self._ends: dict[int, list[int]] = defaultdict(list)
        for lane, (indices, training, rng) in enumerate(shares):
            # The only draws of the plain rule and of a model that draws nothing.
            order = BatchSchedule.draw(len(indices), (), training, rng).order
            sizes = np.fromiter(batch_sizes(len(indices), training), np.int64)
            orders[lane, : len(order)] = indices[order.numpy()]
            plan[: len(sizes), lane] = np.stack([np.cumsum(sizes) - sizes, sizes], axis=1)
            self._ends[len(sizes)].append(lane)
        self._orders.copy_(torch.from_numpy(orders))
        self._plan.copy_(torch.from_numpy(plan))
        self._example_counts, self._seen_by = [len(share.indices) for share in shares], plan[:, :, 1].sum(0).tolist()
        self._trained: dict[int, Packed] = {}
        self._last = max(self._ends)

    def end_all(self) -> list[tuple[Packed, TrainResult]]:
        """Return the clients' models, their floats on the device, and results, after the last step."""
        self._finished()
        totals = self._total.tolist()
        return [
            (self._trained.pop(lane), TrainResult(examples, totals[lane] / self._seen_by[lane]))
            for lane, examples in enumerate(self._example_counts)
        ]

    def step(self) -> bool:
        """Train all clients on their next batches; return whether one had any left.

        Raises:
            ConfigError: the model draws random numbers in the first step, which would not be those of a client alone.
        """
        if self._checked:
            return super().step()
        before = [generator.get_state() for generator in self._generators]
        left = super().step()
        if not all(torch.equal(own.get_state(), old) for own, old in zip(self._generators, before, strict=True)):
            raise ConfigError(f"{type(self.model).__name__} is declared stackable, but draws random numbers")
        self._checked = True
        return left

    def _step(self) -> bool:
        if self._steps == self._last:
            return False
        self._run(self._batch_size)
        self._steps += 1
        for lane in self._ends.get(self._steps, ()):
            self._trained[lane] = pack_on_device(self._parts[lane], self._layout)
        return True

    def _next_batch(self, size: int) -> Batch:
        from fedmr_flwr.gpu.fetch import fetch_all

        inputs, labels = fetch_all(self._examples, self._orders, self._plan, self._at, self._counts, size)
        self._at += 1
        return Batch(inputs, labels, counts=self._counts)
