"""Data sets by name: read once, then shared by all processes of a machine."""

import importlib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from fedmr_flwr.config.paths import default_data_dir
from fedmr_flwr.config.settings import Data
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.data import cache
from fedmr_flwr.data.base import PARTS, Dataset, DatasetArrays, Examples, Normalisation, Source, validate_arrays
from fedmr_flwr.data.cifar import Cifar
from fedmr_flwr.data.digits import Digits
from fedmr_flwr.data.idx import Idx
from fedmr_flwr.data.leaf import Femnist, Shakespeare
from fedmr_flwr.data.npz import Npz
from fedmr_flwr.errors import ConfigError, DataError

# CIFAR as in FedMR's published code; the others as usual in the literature.
_CIFAR10 = Normalisation(mean=(0.5,), std=(0.5,))
_CIFAR100 = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))

_FASHION_MNIST = Normalisation(mean=(0.286,), std=(0.353,))
_MNIST = Normalisation(mean=(0.1307,), std=(0.3081,))

# Every data set by name; add one line to add one.
DATASETS: dict[str, Source] = {
    "cifar10": Cifar(10, "labels", 10, _CIFAR10),
    "cifar100": Cifar(100, "fine_labels", 100, _CIFAR100),
    "cifar100-coarse": Cifar(100, "coarse_labels", 20, _CIFAR100),
    "digits": Digits(),
    "fashion-mnist": Idx("FashionMNIST", "fashion-mnist", _FASHION_MNIST),
    "femnist": Femnist(),
    "mnist": Idx("MNIST", "mnist", _MNIST),
    "shakespeare": Shakespeare(),
}


def load(data: Data, data_dir: Path | None, seed: int | None = None) -> Dataset:
    """Return a data set.

    Args:
        data: its name: an entry of `DATASETS`; "npz:PATH" for a user's own file; or "module:function" for a
            user's own loader, which is called with the folder and returns a `Dataset`; its normalisation; and how
            many of its training examples are used.
        data_dir: the folder of its files; None: `default_data_dir()`.
        seed: of the run; needed only if a part of the training examples is drawn.

    Raises:
        ConfigError: the data set is unknown, or cannot be normalised as configured.
        DataError: its files are missing or damaged, or it has fewer training examples than are asked for.
    """
    return _load(data, data_dir or default_data_dir(), None if data.train_examples is None else seed)


def shape_and_classes(data: Data, data_dir: Path | None) -> tuple[tuple[int, ...], int]:
    """Return the shape of an input and the number of classes, without reading the files where possible.

    Args:
        data: the data set.
        data_dir: the folder of its files.

    Raises:
        FedmrError: as `load`.
    """
    source = DATASETS.get(data.name)
    if source and source.input_shape and source.classes:
        return source.input_shape, source.classes
    dataset = load(data.model_copy(update={"train_examples": None}), data_dir)
    return dataset.input_shape, dataset.classes


# No more than two, because each may hold hundreds of megabytes.
@lru_cache(maxsize=2)
def _load(data: Data, data_dir: Path, seed: int | None) -> Dataset:
    kind, colon, rest = data.name.partition(":")
    measured = None
    if data.name in DATASETS:
        dataset, measured = _from_files(DATASETS[data.name], data.name, data_dir, data.download)
    elif kind == "npz" and colon:
        dataset, measured = _from_files(Npz(rest), Path(rest).name, data_dir, data.download)
    elif colon:
        dataset = _own(data.name, data_dir)
    else:
        known = ", ".join(sorted(DATASETS))
        raise ConfigError(
            f"data.name: unknown data set '{data.name}'; choose one of {known}, npz:PATH or module:function"
        )
    dataset = _normalised(dataset, data.normalisation, measured)
    if data.train_examples is None:
        return dataset
    assert seed is not None, "a run's seed is needed to draw its training examples"
    return _drawn(dataset, data.train_examples, seed)


def _from_files(source: Source, name: str, data_dir: Path, download: bool) -> tuple[Dataset, Normalisation | None]:
    """Read a source, or map its shared copy; return the measured normalisation, too."""
    try:
        files = source.find(data_dir, download)
    except OSError as error:
        raise DataError(f"cannot search {data_dir} for {name}: {error.strerror or error}") from None
    white = source.published.white if source.published else 255.0

    def read() -> DatasetArrays:
        where = str(files[0] if len(files) == 1 else cache.folder_of(files)) if files else name
        arrays = validate_arrays(source.read(files), where, source.classes, source.input_shape)
        if arrays["x_train"].ndim == 4:
            # Measured before the copy is written, so that it is done once and not in each process.
            measured = Normalisation.measure(arrays["x_train"], white)
            arrays |= {"mean": np.array(measured.mean), "std": np.array(measured.std)}
        return arrays

    try:
        found = cache.shared(name, files, read) if files else {key: torch.tensor(own) for key, own in read().items()}
    except OSError as error:
        raise DataError(f"cannot read {error.filename or name}: {error.strerror or error}") from None
    measured = None
    if "mean" in found:
        mean, std = (tuple(found[name].tolist()) for name in ("mean", "std"))
        measured = replace(source.published or Normalisation(mean, std), mean=mean, std=std)
    dataset = Dataset(
        train=Examples(found["x_train"], found["y_train"]),
        test=Examples(found["x_test"], found["y_test"]),
        classes=source.classes or _count_classes(found),
        normalisation=source.published or measured,
        owners=found.get("owners"),
        test_owners=found.get("owners_test"),
    )
    return dataset, measured


def _count_classes(found: Mapping[str, torch.Tensor]) -> int:
    """Return one more than the largest label; for text, one more than the largest label or character."""
    counted = ["y_train", "y_test", *(["x_train", "x_test"] if found["x_train"].ndim == 2 else [])]
    return max(int(found[name].max()) for name in counted) + 1


def _own(name: str, data_dir: Path) -> Dataset:
    module, _, function = name.partition(":")
    try:
        loader = getattr(importlib.import_module(module), function)
    except Exception as error:  # a user's own code may raise anything
        raise ConfigError(f"data.name: '{name}' cannot be imported: {error}; it must be on PYTHONPATH") from error
    try:
        found = loader(data_dir)
    except Exception as error:
        # With its cause, unlike our own errors: the author of the loader needs the traceback.
        raise DataError(f"data.name: '{name}' failed with {type(error).__name__}: {error}") from error
    if not isinstance(found, Dataset):
        raise ConfigError(f"data.name: '{name}' returned {type(found).__name__}, expected fedmr_flwr.Dataset")
    try:
        arrays = {f"x_{part}": getattr(found, part).inputs.numpy() for part in PARTS}
        arrays |= {f"y_{part}": getattr(found, part).labels.numpy() for part in PARTS}
        arrays |= {} if found.owners is None else {"owners": found.owners.numpy()}
        arrays |= {} if found.test_owners is None else {"owners_test": found.test_owners.numpy()}
    except (AttributeError, TypeError) as error:
        raise DataError(f"data.name: '{name}' must return tensors on the CPU: {error}") from None
    good = {
        key: torch.from_numpy(array) for key, array in validate_arrays(arrays, f"'{name}'", found.classes).items()
    }
    train, test = (Examples(good[f"x_{part}"], good[f"y_{part}"]) for part in PARTS)
    normalisation = found.normalisation
    if normalisation is None and train.inputs.ndim == 4:
        normalisation = Normalisation.measure(train.inputs.numpy())
    owners, test_owners = good.get("owners"), good.get("owners_test")
    return replace(found, train=train, test=test, normalisation=normalisation, owners=owners, test_owners=test_owners)


def _drawn(dataset: Dataset, count: int, seed: int) -> Dataset:
    """Return the data set with so many training examples, as many of each class, or all that a small class has."""
    labels = dataset.train.labels.numpy()
    if count > len(labels):
        raise DataError(f"data.train-examples is {count}, but the data set has {len(labels)} training examples")
    shuffled = stream(seed, "train-examples").permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    grouped = labels[by_class]
    # The first of every class come before the second of any.
    rank = np.arange(len(labels)) - np.searchsorted(grouped, grouped)
    # In the order of the files, so that all examples are the same data set as no choice.
    chosen = torch.from_numpy(np.sort(by_class[np.lexsort((grouped, rank))[:count]]))
    train = Examples(dataset.train.inputs[chosen], dataset.train.labels[chosen])
    return replace(dataset, train=train, owners=None if dataset.owners is None else dataset.owners[chosen])


def _normalised(dataset: Dataset, choice: str, measured: Normalisation | None) -> Dataset:
    """Return the data set with the configured normalisation."""
    if choice == "published":
        return dataset
    if dataset.normalisation is None:
        raise ConfigError(f"data.normalisation is {choice}, but text has no pixels; leave it out")
    if choice == "none":
        return replace(dataset, normalisation=replace(dataset.normalisation, mean=(0.0,), std=(1.0,)))
    if measured is None:
        measured = Normalisation.measure(dataset.train.inputs.numpy(), dataset.normalisation.white)
    return replace(dataset, normalisation=measured)
