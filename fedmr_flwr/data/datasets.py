"""Data sets by name: read once, then shared by all processes of a machine."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fedmr_flwr.config.data import Data
from fedmr_flwr.config.paths import default_data_dir, kind_and_path
from fedmr_flwr.data import cache, own_function, subsets
from fedmr_flwr.data.base import Dataset, DatasetArrays, Examples, Facts, Normalisation, Source
from fedmr_flwr.data.cifar import Cifar
from fedmr_flwr.data.digits import BreastCancer, Digits
from fedmr_flwr.data.folder import ImageFolder
from fedmr_flwr.data.hub import HuggingFace
from fedmr_flwr.data.idx import Idx
from fedmr_flwr.data.leaf import Femnist, Shakespeare
from fedmr_flwr.data.npz import Npz
from fedmr_flwr.data.own import Choice, ExampleFormat, Own
from fedmr_flwr.data.table import Table
from fedmr_flwr.data.validation import count_classes, validate_arrays
from fedmr_flwr.errors import ConfigError, DataError

# CIFAR as in FedMR's published code; the others as usual in the literature.
_CIFAR10 = Normalisation(mean=(0.5,), std=(0.5,))
_CIFAR100 = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))

_FASHION_MNIST = Normalisation(mean=(0.286,), std=(0.353,))
_MNIST = Normalisation(mean=(0.1307,), std=(0.3081,))

# Every data set by name; add one line to add one.
DATASETS: dict[str, Source] = {
    "breast-cancer": BreastCancer(),
    "cifar10": Cifar(10, "labels", 10, _CIFAR10),
    "cifar100": Cifar(100, "fine_labels", 100, _CIFAR100),
    "cifar100-coarse": Cifar(100, "coarse_labels", 20, _CIFAR100),
    "digits": Digits(),
    "fashion-mnist": Idx("FashionMNIST", "fashion-mnist", _FASHION_MNIST),
    "femnist": Femnist(),
    "mnist": Idx("MNIST", "mnist", _MNIST),
    "shakespeare": Shakespeare(),
}
_TEST = ("x_test", "y_test")

# Every kind of files of a user's own, "KIND:PATH", as named in `paths.KINDS`.
KINDS: dict[str, type[Own]] = {"csv": Table, "folder": ImageFolder, "hf": HuggingFace, "npz": Npz}


def load(data: Data, data_dir: Path | None, seed: int | None = None) -> Dataset:
    """Return a data set.

    Args:
        data: its name: an entry of `DATASETS`; "KIND:PATH", a kind of `KINDS`, for a user's own files; or
            "module:function" for a user's own loader, which is called with the folder and returns a `Dataset`; its
            normalisation; how many of its training examples are used; and how many of these are for validation.
        data_dir: the folder of its files; None: `default_data_dir()`.
        seed: of the run; needed only if some of the examples are drawn: those for training or validation, or a test
            part.

    Returns:
        The data set. With a part for validation that stands in place of the test examples, which nobody can reach.

    Raises:
        ConfigError: the data set is unknown, or cannot be normalised as configured.
        DataError: its files are missing or damaged, or it has fewer training examples than are asked for.
    """
    drawn = data.train_examples is not None or data.validation > 0 or data.name not in DATASETS
    return _load(data, data_dir or default_data_dir(), seed if drawn else None)


def forget() -> None:
    """Let the next `load` look at the files again; until then, all calls for one data set return the same object."""
    _load.cache_clear()


def check_name(name: str) -> None:
    """Check that there is such a data set, or that it is named as one of a user's own.

    Raises:
        ConfigError: there is none.
    """
    if (kind := name.removesuffix(":")) in KINDS:
        raise ConfigError(f"data.name: '{name}' has no path; write {kind}:PATH")
    if name not in DATASETS and ":" not in name:
        known = ", ".join([*sorted(DATASETS), *(f"{kind}:PATH" for kind in KINDS)])
        raise ConfigError(f"data.name: unknown data set '{name}'; choose one of {known} or module:function")


class InputForm(NamedTuple):
    """What a model must know of a data set, see `models.build`.

    Attributes:
        shape: of an example.
        classes: number of labels.
        text: whether the examples are texts.
    """

    shape: tuple[int, ...]
    classes: int
    text: bool


def form_of(data: Data, data_dir: Path | None, seed: int) -> InputForm:
    """Return the form of the examples, without reading the files where possible.

    Args:
        data: the data set.
        data_dir: the folder of its files.
        seed: of the run.

    Raises:
        FedmrError: as `load`.
    """
    source = DATASETS.get(data.name)
    if source and source.input_shape and source.classes:
        return InputForm(source.input_shape, source.classes, source.text)
    dataset = load(data.model_copy(update={"train_examples": None, "validation": 0.0}), data_dir, seed)
    return InputForm(dataset.input_shape, dataset.classes, dataset.text)


def own_source(name: str, data: Data, seed: int = 0, form: ExampleFormat | None = None) -> Own | None:
    """Return the source of a user's own files; None if `name` is no "KIND:PATH".

    Args:
        name: their kind and path.
        data: what is chosen of the files.
        seed: of the run.
        form: of the server's examples, if the files are a node's own.
    """
    kind, path = kind_and_path(name)
    return KINDS[kind](path, _choice(data), seed, form) if kind else None


# No more than two, because each may hold hundreds of megabytes.
@lru_cache(maxsize=2)
def _load(data: Data, data_dir: Path, seed: int | None) -> Dataset:
    measured = None
    check_name(data.name)
    source = DATASETS.get(data.name) or own_source(data.name, data, seed or 0)
    if source:
        dataset, measured = _from_files(source, data.name, data_dir, data.download)
    else:
        dataset = own_function.call(data.name, data_dir, seed or 0)
    dataset = _normalised(dataset, data.normalisation, measured)
    if data.train_examples is not None:
        assert seed is not None, "a run's seed is needed to draw its training examples"
        dataset = subsets.draw(dataset, data.train_examples, seed)
    if data.validation:
        assert seed is not None, "a run's seed is needed to draw its validation part"
        dataset = subsets.with_validation(dataset, data.validation, seed)
    return dataset


def _from_files(source: Source, name: str, data_dir: Path, download: bool) -> tuple[Dataset, Normalisation | None]:
    """Read a source, or map its shared copy; return the measured normalisation, too."""
    white = source.published.white if source.published else 255.0

    def check(found: DatasetArrays, where: str) -> DatasetArrays:
        arrays = validate_arrays(found, where, source.classes, source.input_shape)
        if arrays["x_train"].ndim == 4 and arrays["x_train"].dtype == np.uint8:
            # Measured before the copy is written, so that it is done once and not in each process.
            measured = Normalisation.measure(arrays["x_train"], white)
            arrays |= {"mean": np.array(measured.mean), "std": np.array(measured.std)}
        return arrays

    found = arrays_of(source, name, data_dir, download, check)
    measured = None
    if "mean" in found:
        mean, std = (tuple(found[name].tolist()) for name in ("mean", "std"))
        measured = replace(source.published or Normalisation(mean, std), mean=mean, std=std)
    facts = Facts.from_array(found["facts"]) if "facts" in found else Facts()
    dataset = Dataset(
        train=Examples(found["x_train"], found["y_train"]),
        test=Examples(found["x_test"], found["y_test"]),
        classes=source.classes or len(facts.names) or count_classes(found),
        normalisation=source.published or measured,
        owners=found.get("owners"),
        test_owners=found.get("owners_test"),
        facts=facts,
    )
    return dataset, measured


def arrays_of(
    source: Source, name: str, data_dir: Path, download: bool, check: Callable[[DatasetArrays, str], DatasetArrays]
) -> dict[str, torch.Tensor]:
    """Read a source, or map its shared copy.

    Args:
        source: of the data set.
        name: of the data set.
        data_dir: the folder in which its files are looked for.
        download: whether missing files may be downloaded.
        check: is given what the source read, and the name of the files for an error; returns what is to be kept.

    Raises:
        DataError: the files are missing or damaged.
    """
    try:
        files = source.find(data_dir, download)
    except OSError as error:
        raise DataError(f"cannot search {data_dir} for {name}: {error.strerror or error}") from None

    def read() -> DatasetArrays:
        where = str(files[0] if len(files) == 1 else cache.folder_of(files)) if files else name
        return check(source.read(files), where)

    if not files:
        return {key: torch.tensor(own) for key, own in read().items()}
    try:
        return cache.shared(_copy_name(source, name, files), files, read)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or name}: {error.strerror or error}") from None


def _copy_name(source: Source, name: str, files: list[Path]) -> str:
    return f"{Path(name).name}-{source.variant(files)}" if isinstance(source, Own) else name


def copy_of(data: Data, data_dir: Path | None, seed: int) -> Path | None:
    """Return where the shared copy of a data set lies that `load` has returned; None if it has none."""
    source = DATASETS.get(data.name) or own_source(data.name, data, seed)
    files = source.find(data_dir or default_data_dir(), data.download) if source else []
    return cache.find(_copy_name(source, data.name, files), files) if source and files else None


def read_examples(name: str, data: Data, form: ExampleFormat) -> tuple[Examples, Examples | None]:
    """Return a node's own examples.

    Args:
        name: of its files, such as "npz:/data/own.npz".
        data: the run's, for what is chosen of the files.
        form: of the server's examples.

    Returns:
        Those for training, and those for testing or None.

    Raises:
        DataError: the files cannot be read, or do not match.
    """
    source = own_source(name, data, form=form)
    assert source is not None

    def check(arrays: DatasetArrays, where: str) -> DatasetArrays:
        # Where a client has no test examples, its training examples stand in, so that one check serves all sources.
        tests = {test: arrays.get(test, arrays[test.replace("test", "train")]) for test in _TEST}
        found = validate_arrays({**arrays, **tests}, where, form.classes, form.input_shape)
        return {key: found[key] for key in arrays if key in ("x_train", "y_train", *_TEST)}

    # No download: the server cannot make a node load files.
    found: dict[str, torch.Tensor] = arrays_of(source, name, Path(), False, check)
    train = Examples(found["x_train"], found["y_train"])
    return train, Examples(found["x_test"], found["y_test"]) if found.keys() >= {*_TEST} else None


def unused_labels(data: Data, dataset: Dataset) -> str | None:
    """Return a line for the user if most outputs of a model would belong to no label of a user's own data.

    A label such as 255 for "unknown" makes 256 outputs.
    """
    text = dataset.train.inputs.ndim == 2 and dataset.train.inputs.dtype == torch.uint8
    used = len(np.unique(dataset.train.labels.numpy()))
    if text or data.name in DATASETS or 2 * used > dataset.classes:
        return None
    return (
        f"data.name={data.name}: {used} different labels, the largest of which is {dataset.classes - 1}: the model "
        f"has {dataset.classes} outputs; number the labels from 0 if that is not meant"
    )


def _choice(data: Data) -> Choice:
    return Choice(data.height_and_width, data.label, data.client, data.image, data.text)


def _normalised(dataset: Dataset, choice: str, measured: Normalisation | None) -> Dataset:
    """Return the data set with the configured normalisation."""
    if choice == "published":
        return dataset
    if dataset.normalisation is None:
        kind = "text has" if dataset.text else "float values have"
        raise ConfigError(f"data.normalisation is {choice}, but {kind} no pixels; leave it out")
    if choice == "none":
        return replace(dataset, normalisation=replace(dataset.normalisation, mean=(0.0,), std=(1.0,)))
    if measured is None:
        measured = Normalisation.measure(dataset.train.inputs.numpy(), dataset.normalisation.white)
    return replace(dataset, normalisation=measured)
