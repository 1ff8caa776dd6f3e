"""Which examples clients keep for testing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmr_flwr.config.data import Data
from fedmr_flwr.config.partition import Partition
from fedmr_flwr.data import datasets, partitions
from fedmr_flwr.data.held_out import draw_validation_part, hold_out
from fedmr_flwr.errors import DataError, PartitionError


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


@given(st.lists(st.integers(0, 4), min_size=20, max_size=80), st.floats(0.1, 0.6), st.integers(0, 99))
def test_each_label_has_its_share_of_validation(labels, share, seed):
    labels = np.array(labels)
    train, held = draw_validation_part(labels, None, share, seed)
    assert sorted([*train, *held]) == [*range(len(labels))]
    assert set(labels[train]) == set(labels)
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        exact = round(share * len(labels)) * count / len(labels)
        # A label of which all would be held out stays for training.
        expected = {np.floor(exact), np.ceil(exact)} | ({0} if exact > count - 1 else set())
        assert (labels[held] == label).sum() in expected


def test_each_author_has_a_share_of_validation():
    owners = np.repeat(np.arange(7), 10)
    labels = np.tile(np.arange(5), 14)
    train, held = draw_validation_part(labels, owners, 0.2, 3)
    assert np.bincount(owners[held]).tolist() == [2] * 7
    lonely = np.concatenate([owners, [7]])
    for seed in range(20):
        train, _ = draw_validation_part(np.append(labels, 0), lonely, 0.5, seed)
        assert 70 in train, "the only example of an author is for training"


def test_validation_of_no_example_is_an_error():
    with pytest.raises(DataError, match="data.validation = 0.01 holds out none of 20 training examples; raise it"):
        draw_validation_part(np.zeros(20, np.int64), None, 0.01, 0)


def test_validation_is_taken_from_the_training_examples():
    whole, data = datasets.load(Data(), None), datasets.load(Data(validation=0.2), None, 5)

    def sorted_rows(*parts):
        return sorted(inputs.numpy().tobytes() for part in parts for inputs in part.inputs)

    assert sorted_rows(data.train, data.test) == sorted_rows(whole.train)
    assert len(data.test) == round(0.2 * len(whole.train))
    assert datasets.load(Data(validation=0.2), None, 6).digest() != data.digest()


def test_validation_is_taken_from_the_chosen_training_examples():
    data = datasets.load(Data(train_examples=200, validation=0.1), None, 0)
    assert data.test.labels.bincount().tolist() == [2] * 10
    assert data.train.labels.bincount().tolist() == [18] * 10


def test_clients_have_validation_examples_of_their_own_writers(tmp_path, write_femnist):
    write_femnist(tmp_path / "femnist", writers=5)
    data = datasets.load(Data(name="femnist", validation=0.25), tmp_path, 0)
    partition = Partition(name="natural")
    parts = partitions.split(data, 3, partition, 4)
    for part, own in zip(parts, partitions.client_tests(data, parts, partition, 4), strict=True):
        # A writer whose every held example is the only one of its character keeps all for training.
        assert set(data.test_owners[own].tolist()) <= set(data.owners[part].tolist())
    assert len(data.test)


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
