"""Noticing that the global model has collapsed: a run would otherwise end well with a model that is worth nothing."""

from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any

from fedmr_flwr.runs.rows import accuracy_of, loss_of

# A loss so many times the best one is that of a model that has lost what it had learnt.
_LOSS_FACTOR = 10.0
# How much of the way from chance to perfection a model must have come before chance is a fall.
_LEARNT = 0.1
# Clients that are named.
_NAMED = 3


class Watch:
    """Compares each evaluated global model with the best ones so far.

    Args:
        chance: the accuracy of a model that knows no more than the most frequent label, 0 to 1.
        rows: the metrics of the rounds before, if the run is resumed.
    """

    def __init__(self, chance: float, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._chance = chance
        self._accuracy: tuple[float, int] | None = None  # the best one, and its round
        self._loss: tuple[float, int] | None = None
        self._collapsed = False
        for row in rows:
            self.look(row, dict)

    def look(self, row: Mapping[str, Any], lengths: Callable[[], Mapping[int, float]]) -> str | None:
        """Return a line if the global model has collapsed since it was evaluated last.

        Args:
            row: the metrics of the round.
            lengths: returns how far each client's model has moved in it.
        """
        loss, accuracy, number = loss_of(row), accuracy_of(row), row["round"]
        if loss is None or accuracy is None:
            return None
        line = None
        collapsed = self._is_collapsed(loss, accuracy)
        if collapsed and not self._collapsed:
            assert self._accuracy and self._loss
            line = (
                f"the global model has collapsed: loss {loss:.4g}, the best was {self._loss[0]:.4g} in round "
                f"{self._loss[1]}; accuracy {accuracy:.4f}, the best was {self._accuracy[0]:.4f} in round "
                f"{self._accuracy[1]}; {_largest(lengths())}"
            )
        self._collapsed = collapsed
        if self._accuracy is None or accuracy > self._accuracy[0]:
            self._accuracy = accuracy, number
        if self._loss is None or loss < self._loss[0]:
            self._loss = loss, number
        return line

    def _is_collapsed(self, loss: float, accuracy: float) -> bool:
        if self._accuracy is None or self._loss is None:
            return False
        best = self._accuracy[0]
        # Overfitting may raise the loss as far while no answer changes.
        far = loss >= _LOSS_FACTOR * self._loss[0] and accuracy < best
        fallen = accuracy <= self._chance and best > self._chance + _LEARNT * (1 - self._chance)
        return far or fallen


def _largest(lengths: Mapping[int, float]) -> str:
    """Return the clients whose models have moved furthest."""
    if not lengths:
        return "no update was measured in this round"
    usual = median(lengths.values())
    order = sorted(lengths, key=lambda client: -lengths[client])[:_NAMED]
    times = [f"client {client} ({lengths[client] / usual:.3g})" if usual else f"client {client}" for client in order]
    return f"largest updates in this round, in multiples of the median: {', '.join(times)}"
