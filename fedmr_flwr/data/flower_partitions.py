"""The partitioners of flwr-datasets, by the name of their class."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr.core.randomness import stream
from fedmr_flwr.errors import ConfigError, PartitionError


def divide(
    name: str,
    arguments: Mapping[str, Any],
    columns: Mapping[str, NDArray[np.int64]],
    clients: int,
    seed: int,
) -> Sequence[NDArray[np.int64]]:
    """Divide examples with a partitioner of flwr-datasets.

    Args:
        name: of its class.
        arguments: of its constructor; the number of partitions, the column and the seed are the run's if not given.
        columns: [N] each: "label", and "client" where the authors of examples are known.
        clients: number of clients.
        seed: of the run.

    Returns:
        For each client the indices of its examples.

    Raises:
        ConfigError: there is no such partitioner, or it does not take these arguments.
        PartitionError: it cannot divide the examples.
    """
    try:
        import datasets
        from flwr_datasets import partitioner
    except ImportError:
        raise ConfigError(
            "partition.name: flwr:NAME needs the package flwr-datasets; install it with pip install 'fedmr-flwr[hf]'"
        ) from None
    kinds = {key: kind for key, kind in vars(partitioner).items() if key in partitioner.__all__}
    if name not in kinds or inspect.isabstract(kinds[name]):
        known = ", ".join(key for key, kind in kinds.items() if not inspect.isabstract(kind))
        raise ConfigError(f"partition.name: flwr-datasets has no partitioner '{name}'; choose one of {known}")
    known_arguments = inspect.signature(kinds[name]).parameters
    if unknown := [key for key in arguments if key not in known_arguments]:
        raise ConfigError(
            f"partition.arguments: {name} has no argument '{unknown[0]}'; it has {', '.join(known_arguments)}"
        )
    own = {
        "num_partitions": clients,
        "partition_by": "client" if "NaturalId" in name else "label",
        "seed": int(stream(seed, "partition").integers(2**31)),
    }
    given = {key: value for key, value in own.items() if key in known_arguments} | dict(arguments)
    datasets.disable_progress_bars()
    rows = {**columns, "index": np.arange(len(columns["label"]))}
    try:
        made = kinds[name](**given)
        made.dataset = datasets.Dataset.from_dict(rows)
        parts = [np.array(made.load_partition(client)["index"], np.int64) for client in range(made.num_partitions)]
    except TypeError as error:
        raise ConfigError(f"partition.arguments: {name} was refused: {_line(error)}") from None
    except Exception as error:  # the partitioners raise many kinds of errors
        raise PartitionError(f"flwr-datasets' {name} cannot divide the examples: {_line(error)}") from None
    if len(parts) != clients:
        raise PartitionError(f"flwr-datasets' {name} made {len(parts)} parts; set clients={len(parts)}")
    if empty := [client for client, part in enumerate(parts) if not len(part)]:
        raise PartitionError(f"flwr-datasets' {name} gave client {empty[0]} no example; change partition.arguments")
    return parts


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
