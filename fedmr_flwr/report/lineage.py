"""Where the parts of the models come from: what was dealt, replayed from the metrics and the seed.

Recombination is drawn from the seed alone, so that the rounds' rows are enough to follow every unit of every slot
through the run, and to say which clients have trained it. Pure functions.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr.core.recombination import Sources, sources

# The strategies whose deal is known here.
STRATEGIES = ("fedmr", "indep")


@dataclass(frozen=True)
class RunSpec:
    """What a population's lineage depends on, besides the rows.

    Attributes:
        strategy: "fedmr", or "indep", which deals every slot its own model.
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
        """Return the slot [U, K] that each unit of each slot comes from; None where every slot gets the mean."""
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
        trained: which client trained a slot; a slot that is not named kept what it was dealt.
    """

    round: int
    sources: Sources | None
    trained: Mapping[int, int]


@dataclass(frozen=True)
class History:
    """The lineage of a run.

    Attributes:
        steps: the latest steps, the last one last.
        begins: whether the first of them is the run's first.
        run: what was run.
        rounds: [R] the numbers of all good rounds.
        by_unit: [R, 3] how many distinct clients have trained one unit of one slot: the fewest over units and
            slots, the mean, the most.
        by_model: [R, 3] the same for a whole model: the clients that have trained any unit of a slot.
    """

    steps: tuple[Step, ...]
    begins: bool
    run: RunSpec
    rounds: NDArray[np.int64]
    by_unit: NDArray[np.float64]
    by_model: NDArray[np.float64]


def replay(rows: Iterable[Mapping[str, Any]], run: RunSpec) -> Iterator[tuple[Step, NDArray[np.bool_]]]:
    """Go through a run's good rounds again.

    A bad round changes nothing and its deal is void, so the next good one deals what the last good one left.

    Args:
        rows: the metrics of all rounds, from the first.
        run: what was run.

    Yields:
        A step for each good round, and [U, K, C]: whether unit u of slot i has been trained by client c, after
        this round. The mean joins the clients of all slots.
    """
    seen = np.zeros((run.units, run.slots, run.clients), bool)
    started = False
    for row in rows:
        if "slots" not in row:
            continue
        sources = run.sources(row["round"]) if started else None  # nothing is dealt before a model is trained
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
    """Sum up a run's lineage.

    Args:
        rows: the metrics of all rounds, from the first.
        run: what was run.
        keep: the number of steps to return.
    """
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
        by_unit=np.array(by_unit, np.float64).reshape(-1, 3),
        by_model=np.array(by_model, np.float64).reshape(-1, 3),
    )


def trace(steps: Sequence[Step], units: int, slot: int = 0) -> NDArray[np.int64]:
    """Follow the units of one slot back from the last step.

    Args:
        steps: S >= 1 steps, none left out between them, such as `History.steps`.
        units: U, the number of units.
        slot: whose model, after the last step.

    Returns:
        [S, U]: the slot in which each unit's ancestor was in each step; -1 before the mean of all slots, from
        where a unit has no one slot to come from.
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
    """Return the client of every slot whose reply was good."""
    failed = {failure["client"] for failure in row.get("failed", ()) if failure["kind"] != "unsolicited"}
    return {slot: client for slot, client in zip(row["slots"], row["clients"], strict=True) if client not in failed}


def _extent(counts: NDArray[np.int64]) -> tuple[float, float, float]:
    return float(counts.min()), float(counts.mean()), float(counts.max())
