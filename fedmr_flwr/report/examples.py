"""What a data set contains and who holds what: tables, and pictures of examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from fedmr_flwr.config.settings import Settings
from fedmr_flwr.data import heterogeneity, skew
from fedmr_flwr.data.base import Dataset
from fedmr_flwr.report import figures, plots

# Rows and columns of the picture, and rows of the table.
_CLASSES, _CLIENTS, _EACH, _LISTED = 10, 12, 8, 50


def describe(dataset: Dataset) -> list[str]:
    """Return lines about the shape of the examples, and what the files say of the columns."""
    kind = "texts" if dataset.text else "float values" if dataset.train.inputs.is_floating_point() else "images"
    facts = dataset.facts
    columns = {"examples": facts.inputs, "labels": facts.label, "clients": facts.client}
    lines = [f"{kind} of shape {list(dataset.input_shape)}"]
    if named := [f"{what} '{name}'" for what, name in columns.items() if name]:
        lines.append(f"columns: {', '.join(named)}")
    if facts.columns:
        lines.append(f"features: {', '.join(column.name for column in facts.columns)}")
    if dataset.owners is not None:
        lines.append(f"{len(np.unique(dataset.owners.numpy()))} clients of the natural partition")
    return lines


def class_table(dataset: Dataset, held_out: str) -> Table:
    """Return a table with the number of examples of each class.

    Args:
        dataset: the data set.
        held_out: what its examples besides those for training are for, "test" or "validation".
    """
    facts, out = dataset.facts, Table()
    out.add_column("class")
    for part in ("training", held_out):
        out.add_column(part, justify="right")
    counts = [part.labels.bincount(minlength=dataset.classes) for part in (dataset.train, dataset.test)]
    for at in range(min(dataset.classes, _LISTED)):
        name = facts.names[at] if at < len(facts.names) else str(at)
        out.add_row(name, *(f"{int(count[at]):,}" for count in counts))
    if dataset.classes > _LISTED:
        out.add_row(f"{dataset.classes - _LISTED} more", *(f"{int(count[_LISTED:].sum()):,}" for count in counts))
    out.add_section()
    out.add_row("all", *(f"{len(part):,}" for part in (dataset.train, dataset.test)))
    return out


def draw(dataset: Dataset, title: str, path: Path) -> bool:
    """Draw the first training images of each class; return whether the examples are images.

    Args:
        dataset: the data set.
        title: of the picture.
        path: the file to write.
    """
    train = dataset.train
    if train.inputs.dtype != torch.uint8 or train.inputs.ndim != 4 or len(dataset.input_shape) != 3:
        return False
    labels, names = train.labels.numpy(), dataset.facts.names
    rows = {
        names[label] if label < len(names) else str(label): train.inputs[np.flatnonzero(labels == label)[:_EACH]]
        for label in np.unique(labels)[:_CLASSES]
    }
    _grid(rows, dataset, "The first training images of each class", title, path)
    return True


def draw_partition(
    dataset: Dataset,
    parts: Sequence[NDArray[np.int64]],
    settings: Settings,
    title: str,
    folder: Path,
    form: str = "png",
) -> list[Path]:
    """Draw the class counts of all clients, and with a skew images of the first ones, as the skew changes them.

    Args:
        dataset: the data set.
        parts: the indices of each client.
        settings: of the run.
        title: of the pictures.
        folder: for the files.
        form: the ending of their names.

    Returns:
        The files: clients.png, and with a skew skew.png.
    """
    drawn = [folder / f"clients.{form}"]
    plots.clients(heterogeneity.class_counts(dataset, parts), title, drawn[0])
    if settings.partition.skew:
        images = {}
        for client, part in enumerate(parts[:_CLIENTS]):
            own = dataset.train.select(part[:_EACH], torch.device("cpu"))
            changed = skew.of_client(own, dataset, settings.partition, settings.seed, client)
            images[f"client {client}"] = changed.inputs
        drawn.append(folder / f"skew.{form}")
        _grid(images, dataset, "Images of the first clients, as their skew changes them", title, drawn[1])
    return drawn


@figures.styled
def _grid(rows: Mapping[str, torch.Tensor], dataset: Dataset, what: str, title: str, path: Path) -> None:
    """Draw uint8 images, a row for each name."""
    figure, flat = figures.new(1.0 * _EACH + 1.5, 1.0 * len(rows) + 0.8, len(rows), _EACH)
    panels = [flat[at : at + _EACH] for at in range(0, len(flat), _EACH)]
    white = int(dataset.normalisation.white) if dataset.normalisation else 255
    for (name, images), row in zip(rows.items(), panels, strict=True):
        row[0].set_ylabel(figures.plain(name[:20]), rotation=0, ha="right", va="center")
        for at, axes in enumerate(row):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if at < len(images):
                # Two channels have no colours: the first stands for them.
                image = images[at].numpy()
                pixels = image.transpose(1, 2, 0) if len(image) == 3 else image[0]
                axes.imshow(pixels, cmap="gray", vmin=0, vmax=white)
    figures.save(figure, what, title, path)
