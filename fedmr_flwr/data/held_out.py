"""The part of a client's examples that is kept for testing."""

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr.core.randomness import stream
from fedmr_flwr.errors import PartitionError


def hold_out(
    part: NDArray[np.int64], labels: NDArray[np.int64], fraction: float, seed: int, client: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide a client's examples into those for training and those for testing.

    Args:
        part: the sorted indices of the client's examples.
        labels: of all examples.
        fraction: of the examples that are for testing, above 0 and below 1; at least one example is.
        seed: of the run.
        client: its number.

    Returns:
        The sorted indices of both, disjoint. Each label has its share of the tests, rounded down or up.

    Raises:
        PartitionError: no example would be left for training.
    """
    count = max(1, round(fraction * len(part)))
    if count >= len(part):
        raise PartitionError(
            f"partition.test-fraction = {fraction:g} leaves client {client} no example for training, of {len(part)}; "
            "lower it, or clients"
        )
    rng = stream(seed, "client-test", client)
    order = rng.permutation(part)
    order = order[np.argsort(labels[order], kind="stable")]
    # One from each of `count` equal stretches of the examples in the order of their labels: every label has its
    # share, also where it is too rare for a fixed number.
    places = ((np.arange(count) + rng.random()) * len(part) / count).astype(np.int64)
    test = np.sort(order[np.minimum(places, len(part) - 1)])
    return np.setdiff1d(part, test), test
