"""Tables for a terminal: the rounds of a run, a partition, the units of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from fedmr_flwr.core.layout import Layout
from fedmr_flwr.core.units import Spec, Unit, format_unit
from fedmr_flwr.runs.rows import accuracy_of, loss_of, scored_on

# The most rows of a run's table.
_ROWS = 12
# The most clients that are listed one by one.
_CLIENTS = 40


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of a run's evaluated rounds; of many, evenly spaced ones and always the last.

    Args:
        rows: the metrics of all rounds.
    """
    scored = [(row, accuracy) for row in rows if (accuracy := accuracy_of(row)) is not None]
    part = scored_on(rows)
    # Rounded up, so that there are never more rows.
    every = max(1, -(-len(scored) // _ROWS))
    out = Table(caption="no round was evaluated")
    if scored:
        best, accuracy = max(scored, key=lambda each: each[1])
        collapses = [str(row["round"]) for row, _ in scored if "collapse" in row]
        out.caption = f"best {part} accuracy {accuracy:.4f} in round {best['round']}"
        if collapses:
            out.caption += f"; the global model collapsed in round {', '.join(collapses)}"
    for name in ("round", f"{part} accuracy", f"{part} loss", "train loss", "s/round", "failures"):
        out.add_column(name, justify="right")
    # Counted from the end, so that the last evaluated round is always included.
    for row, accuracy in scored[::-1][::every][::-1]:
        out.add_row(
            str(row["round"]),
            f"{accuracy:.4f}",
            f"{loss_of(row):.4f}",
            f"{row['train-loss']:.4f}" if "train-loss" in row else "",
            f"{row['seconds']:.2f}",
            str(row["failures"]),
        )
    return out


def score_table(score: Mapping[str, Any]) -> Table:
    """Return a table of what a run has come to; what was not measured is left out.

    Args:
        score: from `summary.score`.
    """
    out = Table(show_header=False)
    out.add_column(no_wrap=True)
    out.add_column(overflow="fold")
    for name, value in score.items():
        if value is not None and value != []:
            out.add_row(name, Text(format_score(value)))
    return out


def format_score(value: Any) -> str:
    """Return a value of a score for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(format_score, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else str(value)


def format_client_accuracy(over: Mapping[str, Any], what: str = "accuracy over clients") -> str:
    """Return one line about a number over clients, from `client_evaluation.summary`."""
    if not over["clients"]:
        return f"{what}: no client replied"
    places = (
        f"{over['own-tests']} on test examples of their own" if over["own-tests"] else "on their training examples"
    )
    return (
        f"{what}: mean {over['mean']:.4f}, standard deviation {over['std']:.4f}, worst tenth "
        f"{over['worst-tenth']:.4f}; weighted by examples {over['weighted-mean']:.4f} ({over['clients']} clients, "
        f"{places})"
    )


def partition_table(counts: NDArray[np.int64], distances: NDArray[np.float64]) -> Table:
    """Return a table of a partition: a row for each client, or only a summary for many clients.

    Args:
        counts: [clients, classes] examples.
        distances: [clients], the distance of each client's labels from those of all clients together.
    """
    sizes, classes = counts.sum(1), np.count_nonzero(counts, axis=1)
    out = Table()
    for name in ("client", "examples", "classes", "distance"):
        out.add_column(name, justify="right")
    if len(counts) <= _CLIENTS:
        for client, (size, held, distance) in enumerate(zip(sizes, classes, distances, strict=True)):
            out.add_row(str(client), f"{size:,}", str(held), f"{distance:.3f}")
        out.add_section()
    for name, at in (("fewest", 0), ("median", 0.5), ("most", 1)):
        size, held, distance = (float(np.quantile(values, at)) for values in (sizes, classes, distances))
        out.add_row(name, f"{size:,.0f}", f"{held:g}", f"{distance:.3f}")
    return out


def unit_table(units: Sequence[Unit], layout: Layout, spec: Spec) -> Table:
    """Return a table of the units of recombination: their keys, sizes and shares of the values.

    Args:
        units: of the layout.
        layout: of the model.
        spec: the configured unit.
    """
    tensors = f"{len(layout.entries)} tensors, {layout.size:,} values"
    # Text, because a pattern such as [a-z] would be taken for markup.
    out = Table(caption=Text(f"unit {format_unit(spec)}: {len(units)} units, {tensors}"))
    out.add_column("unit", overflow="fold")
    out.add_column("tensors", justify="right")
    out.add_column("values", justify="right")
    out.add_column("share", justify="right")
    out.add_column("keys", overflow="fold")
    for unit in units:
        share = f"{100 * unit.size / max(layout.size, 1):.2f} %"
        out.add_row(Text(unit.name), str(len(unit.keys)), f"{unit.size:,}", share, Text(", ".join(unit.keys)))
    return out
