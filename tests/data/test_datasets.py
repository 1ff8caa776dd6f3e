import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmr_flwr.data import datasets
from fedmr_flwr.errors import ConfigError, DataError


def test_digits_are_real_and_split_without_overlap():
    data = datasets.load("digits", None)
    assert (len(data.train), len(data.test), data.classes, data.input_shape) == (1438, 359, 10, (1, 8, 8))
    assert data.train.images.dtype == torch.uint8
    assert (int(data.train.images.min()), int(data.train.images.max())) == (0, 16)
    assert set(data.test.labels.tolist()) == set(range(10))


def test_normalised_training_images_have_mean_zero_and_variance_one():
    data = datasets.load("digits", None)
    images = data.normalise(data.train.images)
    assert images.dtype == torch.float32
    assert abs(float(images.mean())) < 0.01
    assert abs(float(images.std()) - 1) < 0.01


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize("inner", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_its_idx_files(write_fashion_mnist, tmp_path, packed, inner):
    arrays = write_fashion_mnist(tmp_path / inner, packed)
    data = datasets.load("fashion-mnist", tmp_path)
    for examples, part in ((data.train, "train"), (data.test, "t10k")):
        np.testing.assert_array_equal(examples.images[:, 0].numpy(), arrays[part][0])
        np.testing.assert_array_equal(examples.labels.numpy(), arrays[part][1])


def test_the_digest_tells_data_apart(write_fashion_mnist, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_fashion_mnist(tmp_path / name, packed=False, seed=seed)
    a, b, c = (datasets.load("fashion-mnist", tmp_path / name).digest() for name in "abc")
    assert a == b != c


def damage(path, how):
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(b"<html>not found</html>")


@pytest.mark.parametrize("how", ["truncated", "empty", "html"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
def test_a_damaged_file_is_named_with_the_remedy(write_fashion_mnist, tmp_path, how, packed):
    write_fashion_mnist(tmp_path, packed)
    path = tmp_path / f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    damage(path, how)
    with pytest.raises(DataError, match=f"{path.name}.*undamaged copy"):
        datasets.load("fashion-mnist", tmp_path)


def test_files_of_different_sets_are_refused(write_fashion_mnist, tmp_path):
    write_fashion_mnist(tmp_path, packed=False)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(b"\0\0\x08\x01\0\0\0\x07" + bytes(7))
    with pytest.raises(DataError, match="train files .* do not belong together"):
        datasets.load("fashion-mnist", tmp_path)


def test_without_data_and_network_the_error_says_which_files_go_where(tmp_path, monkeypatch):
    from torchvision.datasets import FashionMNIST

    def no_network(*args, **kwargs):
        raise RuntimeError("Error downloading\ntrain-images")

    monkeypatch.setattr(FashionMNIST, "download", no_network)
    with pytest.raises(DataError) as caught:
        datasets.load("fashion-mnist", tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(tmp_path), "train-images-idx3-ubyte[.gz]", "t10k-labels-idx1-ubyte[.gz]", "data-dir="):
        assert part in message


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ConfigError, match="'imagenet' is not known; choose one of digits, fashion-mnist"):
        datasets.load("imagenet", None)


@pytest.mark.skipif(
    datasets._idx_folder(Path(os.environ.get("FEDMR_DATA_DIR", "/nowhere")), ("fashion-mnist",)) is None,
    reason="FEDMR_DATA_DIR does not name a folder with Fashion-MNIST",
)
def test_the_whole_of_fashion_mnist():
    data = datasets.load("fashion-mnist", None)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert data.train.labels.bincount().tolist() == [6000] * 10
    images = data.normalise(data.train.images)
    assert abs(float(images.mean())) < 0.01
    assert abs(float(images.std()) - 1) < 0.01
