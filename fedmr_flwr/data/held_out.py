"""Examples that are held out: of a client's for testing, of files that have no test part, and for validation."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr.core.randomness import stream
from fedmr_flwr.errors import DataError, PartitionError

# The share of a user's examples that is for testing, where the files have no test part.
TEST_SHARE = 0.2


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
    test = _stratified(part, labels, count, stream(seed, "client-test", client))
    return np.setdiff1d(part, test), test


def draw_test_part(labels: NDArray[np.int64], seed: int, where: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide the examples of files into a fifth for testing and the others for training.

    Args:
        labels: of all examples.
        seed: of the run.
        where: the name of the files in an error.

    Returns:
        The sorted indices of the examples for training and for testing, disjoint; every label that occurs is among
        the former.

    Raises:
        DataError: no example would be left for testing.
    """
    train, test = _divide([labels], TEST_SHARE, stream(seed, "test-part"))
    if not len(test):
        raise DataError(f"{where}: {len(labels)} examples are too few to keep a fifth of them for testing; add more")
    return train, test


def draw_validation_part(
    labels: NDArray[np.int64], owners: NDArray[np.int64] | None, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide training examples into those that are left for training and those for validation.

    Args:
        labels: of the examples.
        owners: the author of each, where they are known: each one has its share.
        share: of the examples that is for validation, above 0 and below 1.
        seed: of the run.

    Returns:
        The sorted indices of both, disjoint; every label and every author that occurs is among the former.

    Raises:
        DataError: no example would be left for validation.
    """
    groups = [labels] if owners is None else [owners, labels]
    train, held = _divide(groups, share, stream(seed, "validation"))
    if not len(held):
        raise DataError(
            f"data.validation = {share:g} holds out none of {len(labels)} training examples; raise it, or leave it "
            "out"
        )
    return train, held


def _divide(
    groups: Sequence[NDArray[np.int64]], share: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hold out a share of all examples, stratified by groups, the first before the second; every group keeps some."""
    count = len(groups[0])
    every = np.arange(count)
    strata = np.unique(np.stack(groups, axis=1), axis=0, return_inverse=True)[1].reshape(count)
    held = _stratified(every, strata, round(share * count), rng)
    # The only example of a class, or of an author, is for training.
    for group in groups:
        held = held[np.isin(group[held], np.delete(group, held))]
    return np.setdiff1d(every, held), held


def _stratified(
    part: NDArray[np.int64], labels: NDArray[np.int64], count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw some of the examples, of each label its share; return their sorted indices."""
    order = rng.permutation(part)
    order = order[np.argsort(labels[order], kind="stable")]
    # One from each of `count` equal stretches of the examples in the order of their labels: every label has its
    # share, also where it is too rare for a fixed number.
    places = ((np.arange(count) + rng.random()) * len(part) / max(count, 1)).astype(np.int64)
    return np.sort(order[np.minimum(places, len(part) - 1)])
