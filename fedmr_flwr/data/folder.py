"""Images in a folder for each class."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from fedmr_flwr.data import images
from fedmr_flwr.data.base import PARTS, DatasetArrays, Facts
from fedmr_flwr.data.cache import folder_of
from fedmr_flwr.data.own import Own
from fedmr_flwr.errors import DataError
from fedmr_flwr.files import reading


class ImageFolder(Own):
    """Images in CLASS/IMAGE, or in train/CLASS/IMAGE and test/CLASS/IMAGE."""

    def find(self, folder: Path, download: bool) -> list[Path]:
        """Return all images, which are all files in the folders of classes but hidden ones."""
        root = self.path(folder)
        if not root.is_dir():
            raise DataError(f"{root} is not a folder; write folder:PATH, absolute or relative to data-dir")
        with reading(root, DataError):
            inner = [root / part for part in PARTS]
            places = inner if all(place.is_dir() for place in inner) else [root]
            return [file for place in places for kind in _classes(place) for file in _files(kind)]

    def has_test_part(self, files: list[Path]) -> bool:
        """Return whether the classes are in folders train and test."""
        return {file.parents[1].name for file in files} == {*PARTS}

    def read(self, files: list[Path]) -> DatasetArrays:
        """Read the images, resized to `data.size`."""
        where = str(folder_of(files))
        grouped = {"train": files}
        if self.has_test_part(files):
            grouped = {part: [file for file in files if file.parents[1].name == part] for part in PARTS}
        chosen = self.divide({part: _labels(own) for part, own in grouped.items()}, where)
        parts = {part: [grouped.get(part, files)[at] for at in places] for part, places in chosen.items()}
        arrays = self.numbered({part: _labels(own) for part, own in parts.items()}, where, Facts())
        shape = self._shape(files)
        for part, own in parts.items():
            console = Console(stderr=True)
            bar = track(own, f"reading {part}", console=console, transient=True, disable=not console.is_terminal)
            arrays[f"x_{part}"] = images.read(map(images.of_file, bar), len(own), shape)
        return arrays

    def _shape(self, files: Sequence[Path]) -> images.Shape:
        if self._form:
            channels, height, width = self._form.input_shape
            return images.Shape(channels, (height, width))
        return images.Shape(images.channels_of(map(images.of_file, files)), self._choice.size)


def _classes(place: Path) -> Iterator[Path]:
    """Return the folders of classes, of which there must be one at least."""
    found = sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise DataError(f"{place} has no folders; make one for each class, with its images")
    yield from found


def _files(kind: Path) -> Sequence[Path]:
    """Return the images of a class, of which there must be one at least."""
    found = sorted(path for path in kind.iterdir() if not path.name.startswith("."))
    if not found:
        raise DataError(f"the folder of the class '{kind.name}' is empty: {kind}; put its images there, or remove it")
    if inner := [path for path in found if path.is_dir()]:
        raise DataError(f"{inner[0]} is a folder in that of a class; move its images up, or remove it")
    return found


def _labels(files: Sequence[Path]) -> list[str]:
    return [file.parent.name for file in files]
