"""Which examples clients keep for testing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmr_flwr.config.settings import Data, Partition
from fedmr_flwr.data import datasets, partitions
from fedmr_flwr.data.held_out import hold_out
from fedmr_flwr.errors import PartitionError


@given(st.lists(st.integers(0, 4), min_size=2, max_size=80), st.floats(0.01, 0.6), st.integers(0, 99))
def test_each_label_has_its_share(labels, fraction, seed):
    labels = np.array(labels)
    part = np.arange(len(labels))
    train, test = hold_out(part, labels, fraction, seed, 3)
    assert sorted([*train, *test]) == part.tolist() and len(train) and len(test)
    assert len(test) == max(1, round(fraction * len(part)))
    for label in np.unique(labels):
        exact = len(test) * (labels == label).sum() / len(labels)
        assert np.floor(exact - 1e-9) <= (labels[test] == label).sum() <= np.ceil(exact + 1e-9)


def test_draw_depends_on_seed_and_client():
    part, labels = np.arange(100), np.zeros(100, np.int64)
    draws = {tuple(hold_out(part, labels, 0.2, seed, client)[1]) for seed in (0, 1) for client in (0, 1)}
    assert len(draws) == 4
    assert (hold_out(part, labels, 0.2, 0, 0)[1] == hold_out(part, labels, 0.2, 0, 0)[1]).all()


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.1), (3, 0.9), (2, 0.8)])
def test_some_must_be_left(count, fraction):
    with pytest.raises(PartitionError, match="leaves client 7 no example for training, of") as caught:
        hold_out(np.arange(count), np.zeros(count, np.int64), fraction, 0, 7)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards", "quantity"])
def test_tests_are_a_part_of_the_division(name):
    data = datasets.load(Data(), None)
    whole = partitions.split(data, 8, Partition(name=name), 1)
    partition = Partition(name=name, test_fraction=0.25)
    train = partitions.split(data, 8, partition, 1)
    tests = partitions.client_tests(data, train, partition, 1)
    for own, kept, held in zip(whole, train, tests, strict=True):
        np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), own)
        assert len(held) == round(0.25 * len(own))
    assert partitions.client_tests(data, whole, Partition(name=name), 1) is None


def test_writers_have_leafs_own_tests(tmp_path, write_femnist):
    write_femnist(tmp_path / "femnist", writers=5)
    data = datasets.load(Data(name="femnist"), tmp_path)
    partition = Partition(name="natural")
    parts = partitions.split(data, 3, partition, 4)
    for part, tests in zip(parts, partitions.client_tests(data, parts, partition, 4), strict=True):
        assert set(data.test_owners[tests].tolist()) == set(data.owners[part].tolist()) and len(tests) == 12
    own = Partition(name="natural", test_fraction=0.5)
    kept = partitions.split(data, 3, own, 4)
    assert [len(part) for part in kept] == [6, 6, 6]
    assert set(partitions.client_tests(data, kept, own, 4)[0]) <= set(parts[0]), "of the training examples, as asked"
