"""The lineage of models: the sources of their units, computed again from the metrics and the seed.

Recombination depends on the seed alone, so the rounds' metrics are enough to follow every unit of every slot
through the run, and to determine the clients that have trained it. Pure functions.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr.core.recombination import Sources, sources

# The strategies whose sources can be computed.
STRATEGIES = ("fedmr", "indep")


@dataclass(frozen=True)
class RunSpec:
    """The settings that determine a population's lineage, besides the metrics.

    Attributes:
        strategy: "fedmr", or "indep", with which every slot keeps its own model.
        seed: the seed of the run.
        first_stage_rounds: B: after each of the first B rounds the population is averaged.
        units: U, the number of units.
        slots: K, the number of models.
        clients: C, the number of clients; they are numbered from 0.
    """

    strategy: str
    seed: int
    first_stage_rounds: int
    units: int
    slots: int
    clients: int

    def sources(self, server_round: int) -> Sources | None:
        """Return the source slot of each unit of each slot, [U, K]; None if every slot gets the mean."""
        assert self.strategy in STRATEGIES
        if self.strategy == "indep":
            return np.tile(np.arange(self.slots), (self.units, 1))
        return sources(self.seed, server_round, self.first_stage_rounds, self.units, self.slots)


@dataclass(frozen=True)
class Step:
    """One good round of a population.

    Attributes:
        round: its number.
        sources: [U, K]: slot i got unit u from slot [u, i] of the step before; None where every slot got the
            same model: the initial one in the first step, the mean of all slots in a later one.
        trained: the client of each slot that was trained; the other slots kept the model that they were sent.
    """

    round: int
    sources: Sources | None
    trained: Mapping[int, int]


@dataclass(frozen=True)
class History:
    """The lineage of a run.

    Attributes:
        steps: the latest steps, in order.
        begins: whether the first of them is the run's first.
        run: the settings of the run.
        rounds: [R] the numbers of all good rounds.
        by_unit: [R, 3], the number of distinct clients that have trained one unit of one slot: the minimum over units
            and slots, the mean, the maximum.
        by_model: [R, 3], the same for a whole model: the clients that have trained any unit of a slot.
    """

    steps: tuple[Step, ...]
    begins: bool
    run: RunSpec
    rounds: NDArray[np.int64]
    by_unit: NDArray[np.float64]
    by_model: NDArray[np.float64]


def replay(rows: Iterable[Mapping[str, Any]], run: RunSpec) -> Iterator[tuple[Step, NDArray[np.bool_]]]:
    """Compute the lineage of a run round by round.

    A bad round changes nothing, so the next good round recombines the population of the last good one.

    Args:
        rows: the metrics of all rounds, from the first.
        run: the settings of the run.

    Yields:
        A step for each good round, and [U, K, C]: whether unit u of slot i has been trained by client c, after
        this round. The mean joins the clients of all slots.
    """
    # An array and not sets, because one indexing operation then moves all units of all slots.
    seen = np.zeros((run.units, run.slots, run.clients), bool)
    started = False
    for row in rows:
        if "slots" not in row:
            continue
        sources = (
            run.sources(row["round"]) if started else None
        )  # before the first training there is nothing to recombine
        if sources is None:
            seen = np.repeat(seen.any(axis=1, keepdims=True), run.slots, axis=1)
        else:
            seen = seen[np.arange(run.units)[:, None], sources]
        trained = _trained(row)
        for slot, client in trained.items():
            seen[:, slot, client] = True
        started = True
        yield Step(row["round"], sources, trained), seen


def history(rows: Iterable[Mapping[str, Any]], run: RunSpec, keep: int = 15) -> History:
    """Return the lineage of a run.

    Args:
        rows: the metrics of all rounds, from the first.
        run: the settings of the run.
        keep: the number of steps to return.
    """
    # Only these are drawn; a long run has thousands.
    latest: deque[Step] = deque(maxlen=keep)
    rounds, by_unit, by_model = [], [], []
    for step, seen in replay(rows, run):
        latest.append(step)
        rounds.append(step.round)
        by_unit.append(_extent(np.count_nonzero(seen, axis=2)))
        by_model.append(_extent(np.count_nonzero(seen.any(axis=0), axis=1)))
    return History(
        steps=tuple(latest),
        begins=len(rounds) == len(latest),
        run=run,
        rounds=np.array(rounds, np.int64),
        # Reshaped, so that the columns exist even without a good round.
        by_unit=np.array(by_unit, np.float64).reshape(-1, 3),
        by_model=np.array(by_model, np.float64).reshape(-1, 3),
    )


def trace(steps: Sequence[Step], units: int, slot: int = 0) -> NDArray[np.int64]:
    """Follow the units of one slot back from the last step.

    Args:
        steps: S >= 1 consecutive steps, such as `History.steps`.
        units: U, the number of units.
        slot: the slot after the last step.

    Returns:
        [S, U]: the slot of each unit's ancestor in each step; -1 before the mean of all slots, because
        the mean has no single source slot.
    """
    path = np.full((len(steps), units), -1)
    path[-1] = slot
    for at in range(len(steps) - 1, 0, -1):
        sources = steps[at].sources
        if sources is None:
            break
        path[at - 1] = sources[np.arange(units), path[at]]
    return path


def _trained(row: Mapping[str, Any]) -> dict[int, int]:
    """Return the client of every slot with a good reply."""
    # An unsolicited reply does not make the client's own reply bad.
    failed = {failure["client"] for failure in row.get("failed", ()) if failure["kind"] != "unsolicited"}
    return {slot: client for slot, client in zip(row["slots"], row["clients"], strict=True) if client not in failed}


def _extent(counts: NDArray[np.int64]) -> tuple[float, float, float]:
    return float(counts.min()), float(counts.mean()), float(counts.max())
