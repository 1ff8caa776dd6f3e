"""FEMNIST and Shakespeare, as LEAF's preprocessing writes them: JSON files with the examples by user.

Source: Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018.
"""

import json
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from fedmr_flwr.data.base import PARTS, DatasetArrays, Normalisation, Source
from fedmr_flwr.errors import DataError
from fedmr_flwr.files import reading

# LEAF's 80 characters, in its order.
CHARACTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"


class Leaf(Source):
    """A data set of LEAF: any number of files in train/ and in test/, each with any number of users.

    The test examples of all users together are the test set, of which a run uses those of its participants.

    Args:
        name: of the data set in LEAF.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def find(self, folder: Path, download: bool) -> list[Path]:
        """Return the JSON files of train/ and test/. LEAF's own scripts download the data."""
        for place in (folder / self._name, folder / self._name / "data", folder):
            # Not those whose names begin with a dot: macOS leaves such files behind.
            files = {part: sorted((place / part).glob("[!.]*.json")) for part in PARTS}
            if all(files.values()):
                return [*files["train"], *files["test"]]
        raise DataError(
            f"{self._name} is not in {folder}; put the folders train and test there, with the JSON files written by "
            f"LEAF's data/{self._name}/preprocess.sh, or set data-dir=FOLDER to their folder"
        )

    def read(self, files: list[Path]) -> DatasetArrays:
        """Read the users of all files; the examples of a user in several files are joined."""
        inputs: dict[str, list[NDArray[np.uint8]]] = {part: [] for part in PARTS}
        labels: dict[str, list[NDArray[np.int64]]] = {part: [] for part in PARTS}
        owners: dict[str, list[NDArray[np.int64]]] = {part: [] for part in PARTS}
        numbers: dict[str, int] = {}
        console = Console(stderr=True)
        bar = track(files, f"reading {self._name}", console=console, transient=True, disable=not console.is_terminal)
        for file in bar:
            part = file.parent.name
            for user, x, y in self._users(file):
                inputs[part].append(x)
                labels[part].append(y)
                # Numbers in the order of first appearance, because the natural partition needs integers.
                owners[part].append(np.full(len(y), numbers.setdefault(user, len(numbers))))
        if empty := [part for part in PARTS if not inputs[part]]:
            raise DataError(f"{files[0].parent.parent}/{empty[0]} has no examples; create its files again with LEAF")
        train, test = (np.concatenate(owners[part]) for part in PARTS)
        arrays: DatasetArrays = {"owners": train, "owners_test": test}
        for part in PARTS:
            arrays |= {f"x_{part}": np.concatenate(inputs[part]), f"y_{part}": np.concatenate(labels[part])}
        return arrays

    def _users(self, file: Path) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.int64]]]:
        """Return the users of a file that have examples, with their inputs and labels."""
        with reading(file, DataError, "it must have LEAF's users and user_data; create it again with LEAF"):
            content = json.loads(file.read_text(encoding="utf-8"))
            users = {str(user): content["user_data"][user] for user in content["users"]}
            if len(users) != len(content["users"]):
                raise ValueError("it lists a user twice")
        for user, raw in users.items():
            where = f"user {' '.join(user.split())} in {file}"
            with reading(where, DataError, "create the file again with LEAF"):
                x, y = self._inputs(raw["x"], where), self._labels(raw["y"], where)
            if len(x) != len(y):
                raise DataError(f"{where} has {len(x)} inputs but {len(y)} labels; create the file again with LEAF")
            if len(y):
                yield user, x, y

    @abstractmethod
    def _inputs(self, raw: Any, where: str) -> NDArray[np.uint8]:
        """Turn a user's inputs into [n, ...] uint8."""

    @abstractmethod
    def _labels(self, raw: Any, where: str) -> NDArray[np.int64]:
        """Turn a user's labels into [n] int64."""


class Femnist(Leaf):
    """Handwritten digits and letters of 28x28, 62 classes, a user per writer."""

    input_shape = (1, 28, 28)
    classes = 62
    # Paper is 1 and ink is 0; FedMR's published code inverts this, (0.5 - x) / 0.5.
    published = Normalisation(mean=(0.5,), std=(-0.5,), background=255)

    def __init__(self) -> None:
        super().__init__("femnist")

    def _inputs(self, raw: Any, where: str) -> NDArray[np.uint8]:
        """Multiply by 255: LEAF has divided the bytes by it."""
        pixels = np.asarray(raw, np.float64).reshape(-1, *self.input_shape)
        if not (pixels >= 0).all() or not (pixels <= 1).all():
            raise DataError(f"{where} has pixels outside of 0 to 1; create the file again with LEAF")
        return np.rint(pixels * 255).astype(np.uint8)

    def _labels(self, raw: Any, where: str) -> NDArray[np.int64]:
        return _integers(raw)


class Shakespeare(Leaf):
    """The next character after 80 characters of a role's lines, a user per role."""

    input_shape = (80,)
    text = True
    classes = len(CHARACTERS)

    def __init__(self) -> None:
        super().__init__("shakespeare")

    def _inputs(self, raw: Any, where: str) -> NDArray[np.uint8]:
        return _places(raw, *self.input_shape, where)

    def _labels(self, raw: Any, where: str) -> NDArray[np.int64]:
        return _places(raw, 1, where)[:, 0].astype(np.int64)


def _integers(raw: Any) -> NDArray[np.int64]:
    numbers = np.asarray(raw)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise ValueError("labels must be integers")
    return numbers.astype(np.int64)


# The index of each Unicode character in `CHARACTERS`, or len(CHARACTERS). A table, because one array
# operation for all texts is much faster than a dictionary for each character.
_PLACES = np.full(0x110000, len(CHARACTERS), np.uint8)
_PLACES[[ord(character) for character in CHARACTERS]] = np.arange(len(CHARACTERS))


def _places(texts: list[str], length: int, where: str) -> NDArray[np.uint8]:
    """Return the index in `CHARACTERS` of each character of texts of equal length, [n, length]."""
    if any(len(text) != length for text in texts):
        raise ValueError(f"each text must have {length} characters")
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
    numbers = _PLACES[codes]
    unknown = numbers == len(CHARACTERS)
    if unknown.any():
        character = chr(codes[unknown.argmax()])
        raise DataError(f"{where} has the character {character!r}, which is not among LEAF's {len(CHARACTERS)}")
    return numbers.reshape(-1, length)
