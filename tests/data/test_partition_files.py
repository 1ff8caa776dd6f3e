"""Divisions of a training set as files: what is written is read, and anything else is one line."""

import json

import numpy as np
import pytest
import torch

from fedmr_flwr.config.partition import Partition
from fedmr_flwr.data import partition_files, partitions
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.errors import PartitionError

_EXAMPLES = Examples(torch.zeros(5, 1, 1, 1, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64))
FIVE = Dataset(_EXAMPLES, _EXAMPLES, 1, None)


def test_saved_partition_reads_back(tmp_path):
    parts = [np.array([0, 2]), np.array([1]), np.array([3, 4])]
    partition_files.save(parts, tmp_path / "p.npz")
    assert [part.tolist() for part in partition_files.read(tmp_path / "p.npz")] == [[0, 2], [1], [3, 4]]
    moved = [np.array([0]), np.array([1, 2]), np.array([3, 4])]
    again = partition_files.read(tmp_path / "p.npz")
    assert partition_files.sha256(moved) != partition_files.sha256(parts) == partition_files.sha256(again)


def test_reads_partition_files(tmp_path):
    parts = [np.array([4, 0]), np.array([1, 3])]
    partition_files.save(parts, tmp_path / "p.npz")
    published = {"train_data": {"0": [4, 0], "1": [1, 3]}, "dataset": "cifar10", "num_users": 2, "data_beta": 0.1}
    (tmp_path / "p.json").write_text(json.dumps(published))
    for name in ("p.npz", "p.json"):
        found = partitions.split(FIVE, 2, Partition(name=f"file:{tmp_path / name}"), seed=0)
        assert [part.tolist() for part in found] == [[0, 4], [1, 3]]


@pytest.mark.parametrize(
    ("content", "clients", "words"),
    [
        ('{"train_data": {"0": [0], "1": [1]}}', 3, "divides among 2 clients; set clients=2"),
        ('{"train_data": {"0": [0], "1": [5]}}', 2, "does not match the 5 examples"),
        ('{"train_data": {"0": [0], "1": [-1]}}', 2, "does not match the 5 examples"),
        ('{"train_data": {"0": [0], "1": [0]}}', 2, "does not match the 5 examples"),
        ('{"train_data": {"0": [0], "1": []}}', 2, "does not match the 5 examples"),
        ('{"train_data": {"0": [0], "2": [1]}}', 2, r"KeyError '1'; it must contain"),
        ('{"train_data": {"0": ["x"]}}', 1, "expected a list of whole numbers"),
        ('{"data": 1}', 1, "KeyError 'train_data'"),
        ("[", 1, "Expecting value"),
        ("[1]", 1, "TypeError"),
    ],
)
def test_unfit_file_is_refused(tmp_path, content, clients, words):
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(PartitionError, match=words) as caught:
        partition_files.read_for(path, 5, clients)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x93NUMPY"])
def test_damaged_partition_is_named(tmp_path, content):
    path = tmp_path / "p.npz"
    path.write_bytes(content)
    with pytest.raises(PartitionError, match=r"cannot read .*p\.npz"):
        partition_files.read(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(PartitionError, match=r"none\.npz"):
        partition_files.read(tmp_path / "none.npz")


@pytest.mark.parametrize("kind", ["int8", "int16", "uint32", "uint64", ">i4"])
def test_any_integers_of_a_file_are_read(tmp_path, kind):
    np.savez(tmp_path / "p.npz", edges=np.array([2, 4], kind), indices=np.array([3, 0, 1, 2], kind))
    parts = partition_files.read(tmp_path / "p.npz")
    assert [(part.tolist(), part.dtype) for part in parts] == [([3, 0], np.int64), ([1, 2], np.int64)]


@pytest.mark.parametrize(
    ("indices", "edges", "words"),
    [
        (np.arange(4.0), [2, 4], "expected a list of whole numbers, found float64 in 1 dimensions"),
        (np.arange(4)[:, None], [2, 4], "found int64 in 2 dimensions"),
        (np.array(["0", "1"]), [1, 2], "expected a list of whole numbers"),
        (np.array([2**63, 1], np.uint64), [1, 2], "expected a list of whole numbers"),
        (np.arange(4), [3, 1, 4], "'edges' does not divide 'indices'"),
        (np.arange(4), [2, 3], "'edges' does not divide 'indices'"),
        (np.arange(4), [-1, 4], "'edges' does not divide 'indices'"),
        (np.arange(4), [[2, 4]], "found int64 in 2 dimensions"),
    ],
)
def test_odd_partition_files_are_one_line(tmp_path, indices, edges, words):
    np.savez(tmp_path / "p.npz", edges=np.array(edges), indices=indices)
    with pytest.raises(PartitionError, match=words):
        partition_files.read_for(tmp_path / "p.npz", 2000, 2)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"0": [0, 1.5], "1": [2]}, "expected a list of whole numbers, found float64"),
        ({"0": ["a"], "1": [2]}, "expected a list of whole numbers"),
        ({"0": [[0, 1]], "1": [2]}, "in 2 dimensions"),
        ({"0": [0, 1], "2": [2]}, "KeyError '1'"),
        ({"0": [0, 1], "1": [1, 2]}, "each example has at most one client"),
        ({"0": [0, 1], "1": [10**30]}, "cannot read|does not match"),
        ({"0": [0, 1], "1": []}, "each client needs at least one"),
        (7, "cannot read"),
    ],
)
def test_odd_json_partitions_are_one_line(tmp_path, train, words):
    (tmp_path / "p.json").write_text(json.dumps({"train_data": train}))
    with pytest.raises(PartitionError, match=words):
        partition_files.read_for(tmp_path / "p.json", 2000, 2)


def test_json_list_of_clients_is_read(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps({"train_data": [[0, 2], [1]]}))
    parts = partition_files.read_for(tmp_path / "p.json", 2000, 2)
    assert [part.tolist() for part in parts] == [[0, 2], [1]]
