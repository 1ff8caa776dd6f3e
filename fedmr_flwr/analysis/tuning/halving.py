"""Successive halving: all trials get few rounds, and the best third of them three times as many, and so on.

Source: Jamieson & Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016,
algorithm 1, with a third instead of a half, as usual since Li et al., "Hyperband", JMLR 2018.
"""

import math
from collections.abc import Mapping

FACTOR = 3


def rungs(rounds: int, number: int) -> list[int]:
    """Return the rounds after which trials are compared, in rising order.

    Args:
        rounds: of a trial that is never stopped.
        number: of rungs; fewer, if a trial has too few rounds.
    """
    return sorted({max(1, math.ceil(rounds / FACTOR**rung)) for rung in range(number)})


def promoted(scores: Mapping[int, float]) -> list[int]:
    """Return the trials that continue: the best third, at least two, among them always the first one.

    The first one has the defaults. Since it is never stopped, the best of those that remain is at least as good, and
    since it takes a place, every strategy has the same number of trials on each rung.

    Args:
        scores: by the number of the trial; minus infinity if it failed.
    """
    good = [number for number in ranked(scores) if scores[number] > -math.inf]
    keep = max(2, math.ceil(len(scores) / FACTOR))
    first = [number for number in good if number == 0]
    return sorted(first + [number for number in good if number != 0][: keep - len(first)])


def ranked(scores: Mapping[int, float]) -> list[int]:
    """Return trials from the best to the worst; of equal ones, the earlier first."""
    return sorted(scores, key=lambda number: (-scores[number], number))
