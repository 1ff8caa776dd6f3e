from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmr_flwr.config.loading import parse
from fedmr_flwr.config.partition import Partition
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.data import heterogeneity, partitions
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.errors import ConfigError, FedmrError, PartitionError


def dataset(labels, owners=None):
    """Return a data set of which only the labels matter, and who made the examples."""
    labels = torch.as_tensor(labels)
    examples = Examples(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels)
    owners = None if owners is None else torch.as_tensor(owners)
    return Dataset(examples, examples, int(labels.max()) + 1, None, owners)


DATA = dataset(np.random.default_rng(0).integers(0, 10, 2000))


@pytest.mark.parametrize("name", sorted(partitions.PARTITIONS))
def test_each_example_has_one_client(name):
    parts = partitions.split(DATA, 20, Partition(name=name, alpha=0.5), seed=1)
    assert len(parts) == 20
    assert sorted(np.concatenate(parts)) == list(range(len(DATA.train)))
    assert all((np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize("name", sorted(partitions.PARTITIONS))
def test_seed_decides_the_partition(name):
    first, again, other = (partitions.split(DATA, 20, Partition(name=name, alpha=0.5), seed) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any(list(a) != list(b) for a, b in zip(first, other, strict=True))


def test_iid_shares_are_equal():
    parts = partitions.split(DATA, 10, Partition(name="iid"), seed=0)
    assert {len(part) for part in parts} == {200}
    counts = heterogeneity.class_counts(DATA, parts)
    assert counts.min() > 5, "sorted data would leave classes out"


@pytest.mark.parametrize("seed", range(2))
def test_small_alpha_is_heterogeneous(seed):
    def spread(alpha):
        parts = partitions.split(DATA, 20, Partition(name="dirichlet", alpha=alpha), seed)
        assert min(map(len, parts)) >= 10
        counts = heterogeneity.class_counts(DATA, parts)
        return (counts / counts.sum(1, keepdims=True)).max(1).mean()  # mean share of the largest class

    assert spread(0.1) > spread(1.0) + 0.1 > spread(100.0) + 0.2


@pytest.mark.parametrize(
    ("clients", "alpha", "message"),
    [
        (2001, 1.0, "2000 examples cannot be divided among 2001 clients; lower clients"),
        (201, 1.0, "cannot give each of 201 clients at least 10; lower clients"),
        (100, 0.001, "no Dirichlet split .* alpha 0.001 .* raise partition.alpha, lower clients, or set"),
    ],
)
def test_impossible_split_is_refused(clients, alpha, message):
    with pytest.raises(PartitionError, match=message):
        partitions.split(DATA, clients, Partition(name="dirichlet", alpha=alpha), seed=0)


def test_unknown_partition_is_refused():
    with pytest.raises(
        ConfigError, match="unknown partition 'random'; choose one of dirichlet, .*natural, .*shards, file:PATH"
    ):
        partitions.split(DATA, 5, Partition(name="random"), seed=0)


def test_class_counts_by_hand():
    assert heterogeneity.class_counts(dataset([0, 0, 1, 2, 2]), [np.array([0, 3]), np.array([1, 2, 4])]).tolist() == [
        [1, 0, 1],
        [1, 1, 1],
    ]


def test_dirichlet_takes_random_examples_of_a_class():
    # A file that is sorted by writer within each class: no client may get a run of it.
    labels = np.repeat(np.arange(4), 500)
    parts = partitions.split(dataset(labels), 5, Partition(name="dirichlet", alpha=100.0), seed=0)
    of_first = [part[part < 500] for part in parts]
    assert all(len(part) > 50 and np.diff(part).max() > 1 for part in of_first)
    assert all(abs(part.mean() - 249.5) < 60 for part in of_first)


@pytest.mark.parametrize("name", ["dirichlet", "dirichlet-plain"])
def test_few_examples_of_a_class_favour_no_client(name):
    few = dataset(np.arange(5000) % 1000)
    sizes = np.array(
        [
            [len(part) for part in partitions.split(few, 20, Partition(name=name, alpha=1e6), seed)]
            for seed in range(4)
        ]
    )
    # Binomial: 250 each, with a standard deviation of at most 15.4.
    assert np.abs(sizes - 250).max() < 65
    assert np.abs(sizes.mean(0) - 250).max() < 35


def test_full_client_gets_no_more(monkeypatch):
    # Each class to two clients; with the first two full, nothing of the third class may round into them.
    draws = iter([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0.1, 0.2, 0.3, 0.4]] * 200)

    class Rng:
        def __init__(self):
            self._inner = np.random.default_rng(0)

        def dirichlet(self, alphas):
            return np.array(next(draws), float)

        def permutation(self, values):
            return self._inner.permutation(values)

    for _ in range(50):
        parts = partitions._draw_dirichlet(np.repeat([0, 1, 2], 40), 3 + 1, 1.0, Rng(), True)
        assert sum(map(len, parts)) == 120
        counts = [np.bincount(np.repeat([0, 1, 2], 40)[part], minlength=3)[1] for part in parts[:2]]
        assert counts == [0, 0]


def published_split(labels, clients, alpha, rng):
    """Divide as FedMR's published code does (`separate_data`)."""
    smallest = 0
    while smallest < 10:
        parts = [[] for _ in range(clients)]
        for label in np.unique(labels):
            examples = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.repeat(alpha, clients))
            shares *= [len(part) < len(labels) / clients for part in parts]
            edges = (np.cumsum(shares / shares.sum()) * len(examples)).astype(int)[:-1]
            parts = [part + more.tolist() for part, more in zip(parts, np.split(examples, edges), strict=True)]
        smallest = min(map(len, parts))
    return [np.array(part) for part in parts]


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_dirichlet_is_distributed_as_published(alpha):
    labels = np.repeat(np.arange(10), 300)

    def figures(splits):
        counts = np.stack([[np.bincount(labels[part], minlength=10) for part in parts] for parts in splits])
        sizes = counts.sum(-1)
        return sizes.std(-1).mean(), (counts.max(-1) / sizes).mean(), (counts > 0).sum(-1).mean()

    partition, rng = Partition(name="dirichlet", alpha=alpha), np.random.default_rng(0)
    ours = [partitions.split(dataset(labels), 12, partition, seed) for seed in range(100)]
    theirs = [published_split(labels, 12, alpha, rng) for _ in range(100)]
    # The mean deviation of the sizes has a standard error of 2 to 3 %.
    np.testing.assert_allclose(figures(ours), figures(theirs), rtol=0.12)


def test_plain_dirichlet_is_unbalanced():
    def largest(name):
        return max(map(len, partitions.split(DATA, 20, Partition(name=name, alpha=0.1), seed=3)))

    assert largest("dirichlet-plain") > largest("dirichlet")


@pytest.mark.parametrize("name", ["dirichlet", "dirichlet-plain"])
def test_fill_up_gives_ten_examples_each(name):
    filling = Partition(name=name, alpha=0.05, fill_up=True)
    parts = partitions.split(DATA, 100, filling, seed=0)
    assert sorted(np.concatenate(parts)) == list(range(len(DATA.train)))
    sizes = sorted(map(len, parts))
    assert sizes[0] == 10
    assert sizes[-1] > 2 * sizes[50], "only the largest gave, and no more than it takes"
    again = partitions.split(DATA, 100, filling, seed=0)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))


def test_fill_up_takes_from_the_largest():
    parts = [np.arange(0, 5), np.arange(5, 25), np.arange(25, 37)]
    filled = partitions._filled_up(parts, np.random.default_rng(0))
    assert [len(part) for part in filled] == [10, 15, 12], "all five from the one of twenty"
    assert set(parts[0]) < set(filled[0]) and set(filled[2]) == set(parts[2])
    assert set(filled[0]) - set(parts[0]) == set(parts[1]) - set(filled[1])


def test_iid_equals_flwr_datasets():
    from datasets import Dataset as Table
    from flwr_datasets.partitioner import IidPartitioner

    order = stream(3, "partition").permutation(len(DATA.train))
    partitioner = IidPartitioner(num_partitions=7)
    partitioner.dataset = Table.from_dict({"index": order})
    for client, part in enumerate(partitions.split(DATA, 7, Partition(name="iid"), seed=3)):
        assert part.tolist() == sorted(partitioner.load_partition(client)["index"])


@pytest.mark.parametrize("each", [1, 2, 5])
def test_shards_have_few_classes(each):
    parts = partitions.split(DATA, 20, Partition(name="shards", shards_per_client=each), seed=1)
    assert {len(part) for part in parts} <= {99, 100, 101, 102}
    counts = heterogeneity.class_counts(DATA, parts)
    # Twenty clients cut ten classes of about 200 into 20 * each runs: a run touches two classes at most.
    assert (counts > 0).sum(1).max() <= 2 * each
    assert (counts > 0).sum(1).min() <= each + 1
    with pytest.raises(PartitionError, match="cannot be cut into 101 shards for each of 20 clients; lower"):
        partitions.split(DATA, 20, Partition(name="shards", shards_per_client=101), seed=1)


def test_quantity_skews_sizes_alone():
    parts = partitions.split(DATA, 20, Partition(name="quantity", alpha=0.3), seed=1)
    sizes = np.array([len(part) for part in parts])
    assert sizes.min() >= 10
    assert sizes.max() > 10 * np.median(sizes) / 3
    counts = heterogeneity.class_counts(DATA, parts)
    large = counts[sizes > 150]
    assert (large / large.sum(1, keepdims=True)).max() < 0.2, "every class has about a tenth"
    with pytest.raises(PartitionError, match="cannot give each of 201 clients at least 10; lower clients"):
        partitions.split(DATA, 201, Partition(name="quantity"), seed=1)


def test_divergences_by_hand():
    # Client 0 has the global distribution; 1 and 2 have one class of two each.
    counts = np.array([[5, 5], [4, 0], [0, 4]])
    half = 0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)  # minus the entropy of the middle, (3/4, 1/4)
    expected = np.sqrt(-half - (0 + 1) / 2)
    np.testing.assert_allclose(heterogeneity.divergences(counts), [0, expected, expected], atol=1e-12)
    assert heterogeneity.divergences(np.eye(100, dtype=np.int64))[0] > 0.9, "nothing in common with the others"


def test_natural_clients_are_the_owners():
    made_by = [7, 3, 7, 5, 3, 7]  # numbers may have gaps
    parts = partitions.split(dataset([0] * 6, made_by), 3, Partition(name="natural"), seed=0)
    assert [part.tolist() for part in parts] == [[1, 4], [3], [0, 2, 5]]


def test_natural_equals_flwr_datasets(capfd):
    from datasets import Dataset as Table
    from flwr_datasets.partitioner import NaturalIdPartitioner

    made_by = np.random.default_rng(0).integers(0, 9, 200)
    partitioner = NaturalIdPartitioner(partition_by="owner")
    partitioner.dataset = Table.from_dict({"owner": made_by, "index": np.arange(200)})
    for client, part in enumerate(
        partitions.split(dataset([0] * 200, made_by), 9, Partition(name="natural"), seed=3)
    ):
        assert part.tolist() == sorted(partitioner.load_partition(client)["index"])


@pytest.mark.parametrize(("test", "clients"), [("participants", 2), ("participants", 3), ("all", 2)])
def test_writers_left_out_are_not_tested_on(test, clients):
    data = dataset(np.arange(12) % 3, owners=np.repeat([4, 7, 9], 4))
    # Writer 1 has no training examples: a set that is divided by writer tests on new ones.
    data = replace(data, test_owners=torch.tensor([4, 7, 9, 9, 1, 4, 7, 9, 4, 7, 9, 1]))
    partition = Partition(name="natural", test=test)
    parts = partitions.split(data, clients, partition, 0)
    taking_part = {int(data.owners[part[0]]) for part in parts}
    found = partitions.test_examples(data, parts, partition)
    wanted = {1, 4, 7, 9} if test == "all" else {1, *taking_part}
    expected = [at for at, owner in enumerate(data.test_owners.tolist()) if owner in wanted]
    assert found.labels.tolist() == data.test.labels[expected].tolist()
    assert torch.equal(found.inputs, data.test.inputs[expected])
    assert len(taking_part) == clients
    assert (len(found) == 12) == (test == "all" or clients == 3)


def test_partitions_of_all_examples_test_on_all():
    data = replace(dataset(np.arange(40) % 2, owners=np.arange(40) // 4), test_owners=torch.arange(40) // 4)
    for partition in (Partition(name="iid"), Partition(name="dirichlet", alpha=10.0)):
        assert partitions.test_examples(data, partitions.split(data, 2, partition, 0), partition) is data.test
    unknown = replace(data, test_owners=None)
    partition = Partition(name="natural")
    assert partitions.test_examples(unknown, partitions.split(unknown, 2, partition, 0), partition) is unknown.test


def test_no_test_example_left_is_refused():
    data = replace(dataset(np.arange(8) % 2, owners=np.arange(8) // 4), test_owners=torch.ones(8, dtype=torch.long))
    partition = Partition(name="natural")
    with pytest.raises(
        PartitionError, match="none of the clients' authors has a test example; set partition.test=all"
    ):
        partitions.test_examples(data, [np.arange(4)], partition)


def test_natural_draws_whole_owners():
    made_by = np.random.default_rng(0).integers(0, 40, 1000)
    data = dataset([0] * 1000, made_by)
    chosen = set()
    for seed in range(10):
        parts = partitions.split(data, 4, Partition(name="natural"), seed)
        for part in parts:
            (owner,) = set(made_by[part].tolist())
            assert part.tolist() == np.flatnonzero(made_by == owner).tolist()
            chosen.add(owner)
    assert len(chosen) > 20, "every seed drew the same"


def test_impossible_natural_is_refused():
    with pytest.raises(ConfigError, match="does not state the authors of its examples.*choose another"):
        partitions.split(DATA, 4, Partition(name="natural"), seed=0)
    with pytest.raises(PartitionError, match="has 2 natural clients, not 4; set clients=2"):
        partitions.split(dataset([0] * 3, [0, 1, 1]), 4, Partition(name="natural"), seed=0)


def of_flower(name, clients=4, seed=0, owners=None, **arguments):
    data = replace(DATA, owners=owners)
    return partitions.split(data, clients, Partition(name=f"flwr:{name}", arguments=arguments), seed)


# flwr-datasets warns of classes that no client has, and of its own use of PyArrow.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("IidPartitioner", {}),
        ("DirichletPartitioner", {"alpha": 0.5}),
        ("LinearPartitioner", {}),
        ("ShardPartitioner", {"num_shards_per_partition": 2}),
        ("SizePartitioner", {"partition_sizes": [400, 500, 300, 800]}),
    ],
)
def test_partitioners_of_flower_divide_all(name, arguments):
    parts = of_flower(name, **arguments)
    assert sorted(np.concatenate(parts)) == list(range(2000))
    again = of_flower(name, **arguments)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))


@pytest.mark.filterwarnings("ignore")
def test_pathological_clients_have_their_number_of_classes():
    labels = DATA.train.labels.numpy()
    for part in of_flower("PathologicalPartitioner", num_classes_per_partition=3):
        assert len(np.unique(labels[part])) == 3
    other = of_flower("PathologicalPartitioner", seed=1, num_classes_per_partition=3)
    assert len(other[0]) != len(of_flower("PathologicalPartitioner", num_classes_per_partition=3)[0])


def test_natural_partitioner_takes_the_authors():
    owners = torch.arange(2000) % 4
    parts = of_flower("NaturalIdPartitioner", owners=owners)
    assert all(len(owners[part].unique()) == 1 for part in parts)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("Nobody", {}, "flwr-datasets has no partitioner 'Nobody'; choose one of .*DirichletPartitioner"),
        ("Partitioner", {}, "has no partitioner 'Partitioner'"),
        ("IidPartitioner", {"alpha": 1}, "IidPartitioner has no argument 'alpha'; it has num_partitions"),
        ("DirichletPartitioner", {}, "partition.arguments: DirichletPartitioner was refused: .*alpha"),
        ("DirichletPartitioner", {"alpha": -1.0}, "DirichletPartitioner cannot divide the examples: "),
        ("IidPartitioner", {"num_partitions": 3}, "IidPartitioner made 3 parts; set clients=3"),
        ("NaturalIdPartitioner", {}, "NaturalIdPartitioner cannot divide the examples"),
    ],
)
def test_misused_partitioner_is_one_line(name, arguments, words):
    with pytest.raises(FedmrError, match=words) as caught:
        of_flower(name, **arguments)
    assert "\n" not in str(caught.value)


def test_arguments_are_for_flower():
    with pytest.raises(ConfigError, match="partition.arguments: partition.name=iid does not use it"):
        parse({"partition": {"name": "iid", "arguments": {"alpha": 1}}}, "test")
