"""What all files of users share: options, numbers for the names of classes, a test part where the files have none."""

import hashlib
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import numpy as np

from fedmr_flwr.data.base import DatasetArrays, Facts, Source
from fedmr_flwr.data.held_out import draw_test_part
from fedmr_flwr.errors import DataError

# The usual names of a column with labels.
_LABELS = {"class", "fine_label", "label", "labels", "target", "y"}
# The names of a long list that a message shows.
_SHOWN = 20


@dataclass(frozen=True)
class Choice:
    """What a user chooses of the files.

    Attributes:
        size: height and width to which images are resized; None: as they are.
        label: the column with the labels; None: the one with a usual name.
        client: the column with the clients; None: there is none.
        image: the column with the images; None: the only one.
        text: the column with the texts; None: the only one, if there are no images.
    """

    size: tuple[int, int] | None = None
    label: str | None = None
    client: str | None = None
    image: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class ExampleFormat:
    """The form of a run's examples, in which a node of a deployment reads its own files.

    Attributes:
        input_shape: of an example.
        classes: number of labels.
        facts: of the server's files.
    """

    input_shape: tuple[int, ...]
    classes: int
    facts: Facts


class Own(Source):
    """Files of a user's own.

    Args:
        name: of the file or folder, absolute or relative to the data folder.
        choice: of what is in them.
        seed: of the run; it draws the test part where the files have none.
        form: of the server's examples, if the files are a node's own; then no test part is drawn.
    """

    def __init__(self, name: str, choice: Choice, seed: int = 0, form: ExampleFormat | None = None) -> None:
        self._name, self._choice, self._seed, self._form = name, choice, seed, form

    def variant(self, files: list[Path]) -> str:
        """Return a text that differs where the same files would be read otherwise."""
        seed = None if self._form or self.has_test_part(files) else self._seed
        return hashlib.sha256(repr((self._choice, seed, self._form)).encode()).hexdigest()[:12]

    @abstractmethod
    def has_test_part(self, files: list[Path]) -> bool:
        """Return whether the files state which examples are for testing."""

    def path(self, folder: Path) -> Path:
        """Return the file or folder that `name` means."""
        return folder / os.path.expanduser(self._name)  # noqa: PTH111, it leaves an unknown user unchanged

    def label_of(self, columns: Sequence[str], where: str) -> str:
        """Return the column with the labels: the chosen one, or the only one with a usual name.

        Args:
            columns: the names of all columns.
            where: the name of the files in an error.
        """
        found = [self._choice.label] if self._choice.label else [name for name in columns if name.lower() in _LABELS]
        if len(found) == 1 and found[0] in columns:
            return found[0]
        problem = f"no column '{found[0]}'" if len(found) == 1 else f"{len(found) or 'no'} columns with a usual name"
        raise DataError(f"{where} has {problem} for the labels; set data.label to one of {listed(columns)}")

    def divide(self, labels: Mapping[str, Sequence[str]], where: str) -> dict[str, Sequence[int]]:
        """Return which examples are for which part.

        Args:
            labels: those of "train" and, if the files have one, of "test".
            where: the name of the files in an error.

        Returns:
            The indices of each part; if a test part is drawn, both are among the examples of "train".
        """
        if "test" in labels or self._form:
            return {part: range(len(own)) for part, own in labels.items()}
        _, numbers = np.unique(np.array(labels["train"]), return_inverse=True)
        train, test = draw_test_part(numbers, self._seed, where)
        return {"train": train.tolist(), "test": test.tolist()}

    def numbered(self, labels: Mapping[str, Sequence[str]], where: str, facts: Facts) -> DatasetArrays:
        """Return the labels as numbers, y_train and perhaps y_test, and the facts with the names of the classes.

        Args:
            labels: of each part.
            where: the name of the files in an error.
            facts: with the names, if known; otherwise they are those of the training part in order.

        Raises:
            DataError: a label of the test part is not in the training part, or one is not among the known names.
        """
        facts = self._form.facts if self._form else facts
        names = facts.names or sorted_names(set(labels["train"]))
        for part, own in labels.items():
            if self._form and (unknown := sorted(set(own) - set(names))):
                raise DataError(
                    f"{where} has the label '{unknown[0]}', which the run's data do not have: their labels are "
                    f"{listed(names)}"
                )
            if unknown := sorted(set(own) - set(labels["train"])) if not self._form else []:
                raise DataError(
                    f"the label '{unknown[0]}' occurs only in the {part} part of {where}; add training examples of "
                    "it, or leave it out"
                )
        if not self._form and len(set(labels["train"])) < 2:
            raise DataError(f"{where} has only the label {listed(names)}; a classification needs at least two")
        places = {name: at for at, name in enumerate(names)}
        arrays: DatasetArrays = {
            f"y_{part}": np.array([places[label] for label in own], np.int64) for part, own in labels.items()
        }
        return arrays | {"facts": replace(facts, names=names).to_array()}


def numbered_clients(clients: Mapping[str, Sequence[str]]) -> DatasetArrays:
    """Return the names of clients of each part as numbers, owners and owners_test."""
    numbers = {name: at for at, name in enumerate(sorted_names({name for own in clients.values() for name in own}))}
    keys = {"train": "owners", "test": "owners_test"}
    return {keys[part]: np.array([numbers[name] for name in own], np.int64) for part, own in clients.items()}


def sorted_names(names: set[str]) -> tuple[str, ...]:
    """Return names in alphabetical order, or numbers in that of their size."""
    # Sorted twice, for equal numbers such as 1 and 01; no integers, whose digits Python limits.
    return tuple(sorted(sorted(names), key=Decimal if all(name.isdecimal() for name in names) else None))


def listed(names: Sequence[str]) -> str:
    """Return names for a message."""
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
