import numpy as np
import pytest

from fedmr_flwr.config import Partition
from fedmr_flwr.data import partitions
from fedmr_flwr.errors import ConfigError, PartitionError

LABELS = np.random.default_rng(0).integers(0, 10, 2000)


@pytest.mark.parametrize("name", sorted(partitions.PARTITIONS))
def test_every_example_goes_to_one_client_and_the_seed_decides(name):
    kind = Partition(name=name, alpha=0.5)
    parts = partitions.split(LABELS, 20, kind, seed=1)
    assert len(parts) == 20
    assert sorted(np.concatenate(parts)) == list(range(len(LABELS)))
    again = partitions.split(LABELS, 20, kind, seed=1)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))
    other = partitions.split(LABELS, 20, kind, seed=2)
    assert any(list(a) != list(b) for a, b in zip(parts, other, strict=True))


def test_iid_gives_equal_shares_of_every_class():
    parts = partitions.split(LABELS, 10, Partition(name="iid"), seed=0)
    assert {len(part) for part in parts} == {200}
    counts = partitions.class_counts(LABELS, parts, 10)
    assert counts.min() > 5, "sorted data would leave classes out"


@pytest.mark.parametrize("seed", range(5))
def test_dirichlet_gives_everyone_ten_examples_and_small_alpha_is_more_heterogeneous(seed):
    def spread(alpha):
        parts = partitions.split(LABELS, 20, Partition(name="dirichlet", alpha=alpha), seed)
        assert min(map(len, parts)) >= 10
        counts = partitions.class_counts(LABELS, parts, 10)
        return (counts / counts.sum(1, keepdims=True)).max(1).mean()  # mean share of the largest class

    assert spread(0.1) > spread(1.0) + 0.1 > spread(100.0) + 0.2


@pytest.mark.parametrize(
    ("clients", "alpha", "message"),
    [
        (2001, 1.0, "2000 examples cannot be divided among 2001 clients; lower clients"),
        (201, 1.0, "cannot give each of 201 clients at least 10; lower clients"),
        (100, 0.001, "no Dirichlet split .* alpha 0.001 .* raise partition.alpha or lower clients"),
    ],
)
def test_a_split_that_cannot_be_met_ends_with_an_error(clients, alpha, message):
    with pytest.raises(PartitionError, match=message):
        partitions.split(LABELS, clients, Partition(name="dirichlet", alpha=alpha), seed=0)


def test_an_unknown_partition_is_refused():
    with pytest.raises(ConfigError, match="'random' is not known; choose one of dirichlet, iid"):
        partitions.split(LABELS, 5, Partition(name="random"), seed=0)


def test_class_counts_by_hand():
    labels = np.array([0, 0, 1, 2, 2])
    assert partitions.class_counts(labels, [np.array([0, 3]), np.array([1, 2, 4])], 3).tolist() == [
        [1, 0, 1],
        [1, 1, 1],
    ]


def test_a_saved_partition_reads_back_and_its_hash_tells_it_apart(tmp_path):
    parts = [np.array([0, 2]), np.array([1]), np.array([3, 4])]
    partitions.save(parts, tmp_path / "p.npz")
    assert [part.tolist() for part in partitions.read(tmp_path / "p.npz")] == [[0, 2], [1], [3, 4]]
    moved = [np.array([0]), np.array([1, 2]), np.array([3, 4])]
    again = partitions.read(tmp_path / "p.npz")
    assert partitions.digest(moved) != partitions.digest(parts) == partitions.digest(again)


def test_a_missing_partition_file_is_named(tmp_path):
    with pytest.raises(PartitionError, match=r"none\.npz"):
        partitions.read(tmp_path / "none.npz")
