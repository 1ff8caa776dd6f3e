"""FedExP: FedAvg whose server goes further than the mean when the clients' updates point apart.

Source: Jhunjhunwala et al., "FedExP: Speeding Up Federated Averaging via Extrapolation", ICLR 2023,
algorithm 1 and equation 4.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from pydantic import Field

from fedmr_flwr.algorithms.base import Algorithm, Trained
from fedmr_flwr.config.sections import Section
from fedmr_flwr.core.layout import Floats, Packed
from fedmr_flwr.core.population import average, mean


class FedExPOptions(Section):
    """Options of FedExP.

    Attributes:
        epsilon: what keeps the step finite when the updates cancel each other.
    """

    epsilon: float = Field(0.001, gt=0)


class FedExP(Algorithm):
    """Federated averaging with an extrapolated server step.

    With updates D_i of K clients and their mean D, the server steps by eta D with
    eta = max(1, sum |D_i|^2 / (2 K (|D|^2 + epsilon))). Norms and extrapolation concern trainable parameters;
    buffers are averaged. Clients start from the latest iterate; what is evaluated and saved is the mean of
    the last two, or after the first good round that one.

    For the arguments see `FedExPOptions` and `Algorithm`.

    Attributes:
        step: eta of the latest round.
    """

    options: FedExPOptions

    step = 1.0
    # What the clients start from, and, after the first good round, the latest iterate.
    _start: Packed | None = None
    _iterate: Packed | None = None

    def models(self, server_round: int, arrays: ArrayRecord) -> Sequence[ArrayRecord]:
        """Send the latest iterate to everyone."""
        self._start = self._iterate or self.codec.decode(arrays)
        return [self.codec.encode([self._start.floats], [self._start.ints])] * self.clients_per_round

    def combine(self, server_round: int, trained: Sequence[Trained | None]) -> ArrayRecord:
        """Extrapolate the mean of the models that came back; return the mean of the last two iterates."""
        assert self._start is not None
        before = self._start.floats
        models = [reply.model for reply in trained if reply]
        center = average(models)
        columns = self.codec.layout.parameters
        lengths = [_square(model.floats, before, columns) for model in models]
        of_mean = _square(center.floats, before, columns)
        self.step = max(1.0, sum(lengths) / (2 * len(models) * (of_mean + self.options.epsilon)))
        after = center.floats.copy()
        for part in columns:
            after[part] = before[part] + self.step * (center.floats[part].astype(np.float64) - before[part])
        evaluated = mean([before, after]) if self._iterate else after
        self._iterate = Packed(after, center.ints)
        return self.codec.encode([evaluated], [center.ints])

    def diagnostics(self) -> dict[str, Any]:
        """Return the server's step."""
        return {"server-step": self.step}

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the latest iterate."""
        return {} if self._iterate is None else self._iterate._asdict()

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take up the latest iterate of an earlier `state`."""
        self._iterate = Packed(state["floats"], state["ints"]) if state else None


def _square(model: Floats, origin: Floats, columns: Sequence[slice]) -> float:
    """Return the squared length of an update."""
    off = (np.subtract(model[part], origin[part], dtype=np.float64) for part in columns)
    return sum(float(np.vdot(values, values)) for values in off)
