"""A data set of a user's own Python function, "module:function"."""

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from fedmr_flwr.data.base import PARTS, Dataset, Examples, Normalisation
from fedmr_flwr.data.items import arrays_of_items
from fedmr_flwr.data.validation import count_classes, validate_arrays
from fedmr_flwr.errors import ConfigError, DataError, describe


def call(name: str, data_dir: Path, seed: int) -> Dataset:
    """Call a function, and check what it returns.

    Args:
        name: "module:function".
        data_dir: the folder of data files, its argument.
        seed: of the run, which divides a data set of PyTorch's that has no test part.

    Raises:
        ConfigError: it cannot be imported, or returns something else than a data set.
        DataError: it failed, or its arrays are wrong.
    """
    module, _, function = name.partition(":")
    try:
        loader = getattr(importlib.import_module(module), function)
    except Exception as error:  # a user's own code may raise anything
        where = "it must be in the current folder or on PYTHONPATH"
        raise ConfigError(f"data.name: '{name}' cannot be imported: {describe(error)}; {where}") from error
    try:
        found = loader(data_dir)
    except Exception as error:
        # With its cause, unlike our own errors: the author of the loader needs the traceback.
        raise DataError(f"data.name: '{name}' failed with {describe(error)}") from error
    parts = found if isinstance(found, tuple) else (found,)
    if len(parts) in (1, 2) and all(isinstance(part, torch.utils.data.Dataset) for part in parts):
        arrays = validate_arrays(arrays_of_items(parts, f"'{name}'", seed), f"'{name}'")
        return _with_measured({key: torch.from_numpy(array) for key, array in arrays.items()})
    if not isinstance(found, Dataset):
        raise ConfigError(
            f"data.name: '{name}' returned {type(found).__name__}, expected fedmr_flwr.Dataset, or one or two of "
            "torch.utils.data.Dataset"
        )
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
    if train.inputs.dtype != torch.uint8:
        normalisation = None
    elif normalisation is None and train.inputs.ndim == 4:
        normalisation = Normalisation.measure(train.inputs.numpy())
    owners, test_owners = good.get("owners"), good.get("owners_test")
    return replace(found, train=train, test=test, normalisation=normalisation, owners=owners, test_owners=test_owners)


def _with_measured(found: Mapping[str, torch.Tensor]) -> Dataset:
    """Return a data set of arrays, with the measured normalisation of images."""
    train, test = (Examples(found[f"x_{part}"], found[f"y_{part}"]) for part in PARTS)
    image = train.inputs.ndim == 4 and train.inputs.dtype == torch.uint8
    return Dataset(train, test, count_classes(found), Normalisation.measure(train.inputs.numpy()) if image else None)
