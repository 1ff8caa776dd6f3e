import pickle
import tarfile

import numpy as np
import pytest

from fedmr_flwr.config.data import Data
from fedmr_flwr.data import datasets
from fedmr_flwr.errors import DataError


def load(name, folder):
    return datasets.load(Data(name=name), folder)


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_cifar10_reads_pickled_batches(write_cifar, tmp_path, packed):
    batches = write_cifar(tmp_path, "CIFAR10", packed)
    data = load("cifar10", tmp_path)
    train = [batches[f"data_batch_{number}"] for number in range(1, 6)]
    images = np.concatenate([batch["data"] for batch in train]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(data.train.inputs.numpy(), images)
    assert data.train.labels.tolist() == sum((batch["labels"] for batch in train), [])
    assert data.test.labels.tolist() == batches["test_batch"]["labels"]
    assert (data.classes, data.input_shape) == (10, (3, 32, 32))


def test_rows_hold_channels_in_turn(write_cifar, tmp_path):
    batches = write_cifar(tmp_path, "CIFAR10")
    data = load("cifar10", tmp_path)
    row = batches["data_batch_1"]["data"][0]
    assert data.train.inputs[0, 1, 2, 3] == row[1 * 1024 + 2 * 32 + 3]


@pytest.mark.parametrize(("name", "key", "classes"), [("cifar100", "fine", 100), ("cifar100-coarse", "coarse", 20)])
def test_cifar100_has_fine_and_coarse_labels(write_cifar, tmp_path, name, key, classes):
    batches = write_cifar(tmp_path, "CIFAR100")
    data = load(name, tmp_path)
    assert data.train.labels.tolist() == batches["train"][f"{key}_labels"]
    assert data.test.labels.tolist() == batches["test"][f"{key}_labels"]
    assert data.classes == classes


def test_published_normalisations(write_cifar, tmp_path):
    write_cifar(tmp_path, "CIFAR10")
    write_cifar(tmp_path, "CIFAR100")
    data = load("cifar10", tmp_path)
    pixel = float(data.train.inputs[0, 2, 5, 5])
    assert float(data.prepare(data.train.inputs[:1])[0, 2, 5, 5]) == pytest.approx(
        (pixel / 255 - 0.5) / 0.5, rel=1e-6
    )
    data = load("cifar100-coarse", tmp_path)
    means, stds = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    for channel, (mean, std) in enumerate(zip(means, stds, strict=True)):
        pixel = float(data.train.inputs[0, channel, 5, 5])
        found = float(data.prepare(data.train.inputs[:1])[0, channel, 5, 5])
        assert found == pytest.approx((pixel / 255 - mean) / std, rel=1e-5)


@pytest.mark.parametrize("batch", ["data_batch_3", "test_batch"])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_unknown_batch_is_never_unpickled(write_cifar, tmp_path, packed, batch):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("evil").touch, ())

    write_cifar(tmp_path, "CIFAR10", packed, instead={batch: pickle.dumps(Evil())})
    with pytest.raises(DataError, match=f"{batch} does not have the MD5 sum of the published file; replace it"):
        load("cifar10", tmp_path)
    assert not (tmp_path / "evil").exists()


def test_missing_batch_is_named(write_cifar, tmp_path):
    write_cifar(tmp_path, "CIFAR10")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"data_batch_3 is missing; remove its folder and put cifar-10-python.tar.gz"):
        load("cifar10", tmp_path)


def test_missing_batch_comes_from_the_archive(write_cifar, tmp_path):
    write_cifar(tmp_path, "CIFAR10")
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(path.parent, path.parent.name)
    path.unlink()
    assert len(load("cifar10", tmp_path).train) == 300


@pytest.mark.parametrize("damage", ["cut", "no archive", "another archive"])
def test_damaged_archive_is_named(write_cifar, tmp_path, damage):
    write_cifar(tmp_path, "CIFAR100", packed=True)
    archive = tmp_path / "cifar-100-python.tar.gz"
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2] if damage == "cut" else b"<html>")
    if damage == "another archive":
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(__file__, "test.py")
    with pytest.raises(
        DataError, match=r"cannot read .*cifar-100-python.tar.gz: .*; replace it with an undamaged copy"
    ):
        load("cifar100", tmp_path)


def test_archive_is_not_unpacked(write_cifar, tmp_path):
    write_cifar(tmp_path, "CIFAR10", packed=True)
    assert len(load("cifar10", tmp_path).train) == 300
    assert sorted(path.name for path in tmp_path.iterdir()) == [".cifar10.safetensors", "cifar-10-python.tar.gz"]


def test_archive_member_must_be_a_file(write_cifar, tmp_path):
    write_cifar(tmp_path, "CIFAR10")
    inner = tmp_path / "cifar-10-batches-py"
    (inner / "test_batch").unlink()
    (inner / "test_batch").mkdir()
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(inner, inner.name)
    (inner / "data_batch_1").unlink()
    with pytest.raises(DataError, match="cannot read .*tar.gz: .*test_batch is not a file"):
        load("cifar10", tmp_path)


def test_missing_data_names_the_files(tmp_path):
    with pytest.raises(DataError) as caught:
        load("cifar100-coarse", tmp_path)
    for part in (str(tmp_path), "cifar-100-python.tar.gz", "data-dir=FOLDER", "data.download=true"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fakes_look_real_to_torchvision(write_cifar, tmp_path):
    from torchvision import datasets as torchvision_datasets

    batches = write_cifar(tmp_path, "CIFAR100")
    found = torchvision_datasets.CIFAR100(str(tmp_path), train=False)
    np.testing.assert_array_equal(found.data.transpose(0, 3, 1, 2).reshape(-1, 3072), batches["test"]["data"])
    assert found.targets == batches["test"]["fine_labels"]
