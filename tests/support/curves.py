"""Rows of metrics of runs that nobody ran."""

from collections.abc import Sequence
from typing import Any


def rows(accuracies: Sequence[float], every: int = 2, clients: int = 4, seconds: float = 0.5) -> list[dict[str, Any]]:
    """Return rounds of which every second one is evaluated; round r takes r times the seconds."""
    found = []
    for at in range(1, every * len(accuracies) + 1):
        row: dict[str, Any] = {"round": at, "seconds": seconds * at, "clients": list(range(clients))}
        row["bytes-down"] = {"arrays": 400 * clients, "control": 100 * clients}
        row["bytes-up"] = {"arrays": 200 * clients}
        if at % every == 0:
            row["test-accuracy"] = accuracies[at // every - 1]
        found.append(row)
    return found


# Two strategies, two seeds of each.
TWO = {
    "fedmr": [rows([0.1, 0.5, 0.7, 0.6, 0.8, 0.7]), rows([0.2, 0.6, 0.6, 0.7, 0.9, 0.8])],
    "fed_avg/mu=0.1": [rows([0.2, 0.3, 0.4, 0.55, 0.5, 0.519]), rows([0.1, 0.1, 0.2, 0.3, 0.4, 0.5])],
}
