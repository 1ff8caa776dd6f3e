"""Data sets of Hugging Face: from a folder that `save_to_disk` wrote, the local cache, or the Hub."""

import io
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr.data import images
from fedmr_flwr.data.base import DatasetArrays, Facts
from fedmr_flwr.data.own import Own, listed, numbered_clients
from fedmr_flwr.errors import DataError
from fedmr_flwr.files import reading

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

# The bytes of a text that count if `data.size` is not given, as in LEAF's Shakespeare.
_LENGTH = 80
_REMEDY = (
    "write hf:PATH, a folder that save_to_disk wrote, or hf:NAME or hf:NAME:SUBSET, a data set in the local cache, "
    "or on the Hub with data.download=true and a network"
)


class HuggingFace(Own):
    """A data set with a column of images or texts, one of labels and perhaps one of clients."""

    def find(self, folder: Path, download: bool) -> list[Path]:
        """Return the files in which the data set is stored, downloaded if necessary."""
        try:
            import datasets
        except ImportError:
            raise DataError("hf: needs the package datasets; install it with pip install 'fedmr-flwr[hf]'") from None
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()  # where a data set came from is no warning
        path = self.path(folder)
        with reading(f"hf:{self._name}", DataError, _REMEDY):
            if path.is_dir():
                self._parts = _parts(datasets.load_from_disk(path), self._name)
            else:
                name, _, subset = self._name.partition(":")
                self._parts = _parts(_load(name, subset or None, download), self._name)
            self._choose(self._parts["train"])
            return sorted({Path(file["filename"]) for part in self._parts.values() for file in part.cache_files})

    def _choose(self, train: "Dataset") -> None:
        """Choose the columns, as configured or because there is one candidate, or as on the server."""
        from datasets import ClassLabel, Image, Value

        where, features = f"hf:{self._name}", train.features
        facts = self._form.facts if self._form else Facts()
        own = self._choice
        labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        self._label = facts.label or own.label or (labels[0] if len(labels) == 1 else "")
        self._label = self._label or self.label_of([*features], where)
        pictures = [name for name, feature in features.items() if isinstance(feature, Image)]
        texts = [
            name
            for name, feature in features.items()
            if isinstance(feature, Value) and feature.dtype in ("string", "large_string")
        ]
        texts = [name for name in texts if name not in (self._label, own.client)]
        chosen = facts.inputs or own.image or own.text
        found = [chosen] if chosen else pictures or texts
        if len(found) != 1:
            raise DataError(
                f"{where} has {len(found) or 'no'} columns of images or texts; set data.image or data.text to one of "
                f"{listed([*features])}"
            )
        self._inputs = found[0]
        for name in (self._label, self._inputs, *([own.client] if own.client and not self._form else [])):
            if name not in features:
                raise DataError(f"{where} has no column '{name}'; its columns are {listed([*features])}")
        # A model of texts has an output for each byte, see `charlstm`.
        self.text = self._inputs not in pictures
        self.classes = 256 if self.text and not self._form else None
        if self.text and self._inputs not in [*texts, own.text]:
            raise DataError(f"the column '{self._inputs}' of {where} has no images or texts; choose another one")

    def has_test_part(self, files: list[Path]) -> bool:
        """Return whether the data set has a split for testing."""
        return "test" in self._parts

    def read(self, files: list[Path]) -> DatasetArrays:
        """Read the columns; images are resized to `data.size`, texts cut to so many bytes."""
        where = f"hf:{self._name}"
        with reading(where, DataError, "its files are damaged; save or download it again"):
            for data in self._parts.values():
                data.data.validate(full=True)  # damaged offsets lead out of the mapped memory: the process would die
        labels = {
            part: _labels(data, self._label, f"the {part} part of {where}") for part, data in self._parts.items()
        }
        chosen = self.divide(labels, where)
        parts = {part: self._parts.get(part, self._parts["train"]).select(own) for part, own in chosen.items()}
        names = tuple(getattr(self._parts["train"].features[self._label], "names", ()))
        client = None if self._form else self._choice.client
        facts = Facts(names=names, label=self._label, client=client, inputs=self._inputs)
        divided = {part: [labels.get(part, labels["train"])[at] for at in own] for part, own in chosen.items()}
        arrays = self.numbered(divided, where, facts)
        if client:
            arrays |= numbered_clients({part: _values(data, client, where) for part, data in parts.items()})
        return arrays | {f"x_{part}": self._read(data, where) for part, data in parts.items()}

    def _read(self, data: "Dataset", where: str) -> NDArray[np.uint8]:
        if self.text:
            length = (
                self._form.input_shape[0] if self._form else self._choice.size[0] if self._choice.size else _LENGTH
            )
            return _bytes(_values(data, self._inputs, where), length)
        return images.read(_images(data, self._inputs, where), len(data), self._shape(where))

    def _shape(self, where: str) -> images.Shape:
        if self._form:
            channels, height, width = self._form.input_shape
            return images.Shape(channels, (height, width))
        every = (one for data in self._parts.values() for one in _images(data, self._inputs, where))
        return images.Shape(images.channels_of(every), self._choice.size)


def _load(name: str, subset: str | None, download: bool) -> "Dataset | DatasetDict":
    """Return a data set from the local cache; one that is not there from the Hub, if it may be downloaded."""
    from datasets import config, load_dataset

    offline, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True
    try:
        # Before the Hub is asked: a run that is repeated or resumed has the same data, and needs no network.
        return load_dataset(name, subset)
    except ConnectionError:
        if not download:
            raise ValueError("it is not in the local cache") from None
    except ValueError:  # this subset is not there
        if not download:
            raise
    finally:
        config.HF_HUB_OFFLINE = offline
    return load_dataset(name, subset)


def _parts(found: "Dataset | DatasetDict", name: str) -> "dict[str, Dataset]":
    """Return the training part, and the one for testing if there is one."""
    if not isinstance(found, dict):
        return {"train": found}
    tests = [split for split in ("test", "validation", "valid", "val") if split in found]
    if "train" in found:
        return {"train": found["train"]} | ({"test": found[tests[0]]} if tests else {})
    if len(found) == 1:
        return {"train": next(iter(found.values()))}
    raise DataError(f"hf:{name} has no split 'train'; its splits are {listed([*found])}")


def _values(data: "Dataset", column: str, where: str) -> list[str]:
    """Return a column as texts; no value may be missing."""
    values = list(data[column])
    if None in values:
        raise DataError(f"the column '{column}' of {where} has no value in row {values.index(None) + 1}; fill it in")
    return [str(value) for value in values]


def _labels(data: "Dataset", label: str, where: str) -> list[str]:
    """Return the names of labels."""
    from datasets import ClassLabel

    feature, values = data.features[label], _values(data, label, where)
    if isinstance(feature, ClassLabel):
        if (unknown := next((value for value in values if int(value) < 0), None)) is not None:
            raise DataError(f"{where} has an example without a label, {unknown}; leave such a part out")
        return [feature.names[int(value)] for value in values]
    if feature.dtype.startswith(("float", "double")):
        if any(float(value) % 1 for value in values):
            raise DataError(f"the label '{label}' of {where} is a number; only classes can be learned")
        return [str(int(float(value))) for value in values]
    return values


def _images(data: "Dataset", column: str, where: str) -> Iterator[images.Openable]:
    """Yield the images of a column, undecoded."""
    from datasets import Image

    for row, values in enumerate(data.select_columns([column]).cast_column(column, Image(decode=False)), start=1):
        stored = values[column]
        if stored is None:
            raise DataError(f"the column '{column}' of {where} has no image in row {row}; leave it out")
        name = f"the image in row {row} of {where}"
        if stored["bytes"] is not None:
            yield name, partial(io.BytesIO, stored["bytes"])
        else:
            yield images.of_file(Path(stored["path"]))


def _bytes(texts: Sequence[str], length: int) -> NDArray[np.uint8]:
    """Return the first bytes of texts in UTF-8, [N, length]; zeros follow a shorter one."""
    found = np.zeros((len(texts), length), np.uint8)
    for row, text in zip(found, texts, strict=True):
        content = np.frombuffer(text.encode()[:length], np.uint8)
        row[: len(content)] = content
    return found
