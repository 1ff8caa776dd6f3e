"""FedExP: FedAvg whose server steps beyond the mean when the clients' updates point in different directions.

Source: Jhunjhunwala et al., "FedExP: Speeding Up Federated Averaging via Extrapolation", ICLR 2023,
algorithm 1 and equation 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from pydantic import Field

from fedmr_flwr.algorithms.base import Algorithm
from fedmr_flwr.algorithms.contract import Combined, Round, Slot, StateArrays
from fedmr_flwr.algorithms.weighting import Weighting, weights
from fedmr_flwr.config.sections import Section
from fedmr_flwr.core.distributions import LogUniform
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.core.population import average, mean, squared_distance


class FedExPOptions(Section):
    """Options of FedExP.

    Attributes:
        epsilon: keeps the step finite when the updates cancel each other.
        weighting: of the clients' updates, in their mean and in the step: `uniform`, as in the paper's equation 4, or
            by their `examples`, as in its published code.
    """

    epsilon: Annotated[float, LogUniform(1e-4, 0.1)] = Field(0.001, gt=0)
    weighting: Weighting = "uniform"


@dataclass(frozen=True)
class FedExPState:
    """The state of FedExP.

    Attributes:
        model: the latest iterate; None before the first good round.
    """

    model: Packed | None

    def arrays(self) -> StateArrays:
        """Return both parts of the iterate."""
        return {} if self.model is None else self.model._asdict()

    @classmethod
    def from_arrays(cls, arrays: StateArrays) -> Self:
        """Restore the iterate."""
        return cls(Packed(arrays["floats"], arrays["ints"]))


class FedExP(Algorithm[FedExPState]):
    """Federated averaging with an extrapolated server step.

    With updates D_i of the clients, weights p_i with the sum 1 and the mean D = sum p_i D_i, the server steps by
    eta D with eta = max(1, sum p_i |D_i|^2 / (2 (|D|^2 + epsilon))). Norms and extrapolation are over trainable
    parameters; buffers are averaged. Clients start from the latest iterate; the model that is evaluated and saved is
    the mean of the last two iterates, or the only one after the first good round.

    For the arguments see `FedExPOptions` and `Algorithm`.
    """

    options: FedExPOptions
    averages_one_model = False

    def init(self, layout: Layout, slots: int) -> FedExPState:
        """Start without an iterate: the global model is the first one."""
        return FedExPState(None)

    def models(self, round: Round) -> Sequence[Packed]:
        """Send the latest iterate to everyone."""
        return [self._start(round)] * self.slots

    def combine(self, round: Round, slots: Sequence[Slot]) -> Combined[FedExPState]:
        """Extrapolate the mean of the trained models; return the mean of the last two iterates."""
        before, columns = self._start(round).floats, round.layout.parameters
        good = [slot.reply for slot in slots if slot.reply]
        models = [reply.model for reply in good]
        shares = weights([reply.examples for reply in good], self.options.weighting)
        center = average(models, shares)
        lengths = [squared_distance(model.floats, before, columns) for model in models]
        of_mean = squared_distance(center.floats, before, columns)
        # Never below 1, so that the server goes at least as far as FedAvg.
        scattered = sum(share * length for share, length in zip(shares, lengths, strict=True))
        step = max(1.0, scattered / (2 * sum(shares) * (of_mean + self.options.epsilon)))
        after = center.floats.copy()
        for part in columns:
            # Parameters only: an extrapolated variance could become negative. In float64, like the means.
            after[part] = before[part] + step * (center.floats[part].astype(np.float64) - before[part])
        # After the first round the iterate alone: the initial model would only blur it.
        evaluated = mean([before, after]) if self.state.model else after
        state = FedExPState(Packed(after, center.ints))
        return Combined(Packed(evaluated, center.ints), state, {"server-step": step})

    def _start(self, round: Round) -> Packed:
        return self.state.model or round.global_model
