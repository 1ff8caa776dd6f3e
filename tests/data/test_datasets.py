import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmr_flwr.config.data import Data
from fedmr_flwr.config.loading import parse
from fedmr_flwr.data import datasets
from fedmr_flwr.data.base import Normalisation
from fedmr_flwr.errors import ConfigError, DataError, FedmrError


def load(name, folder, **options):
    return datasets.load(Data(name=name, **options), folder)


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    data, bunch = load("digits", None), load_digits()
    held_out = np.arange(len(bunch.target)) % 5 == 4
    for part, chosen in ((data.train, ~held_out), (data.test, held_out)):
        assert (part.inputs[:, 0].numpy() == bunch.images[chosen]).all()
        assert (part.labels.numpy() == bunch.target[chosen]).all()


def test_digits_are_split():
    data = load("digits", None)
    assert (len(data.train), len(data.test), data.classes, data.input_shape) == (1438, 359, 10, (1, 8, 8))
    assert data.train.inputs.dtype == torch.uint8
    assert (int(data.train.inputs.min()), int(data.train.inputs.max())) == (0, 16)
    assert set(data.test.labels.tolist()) == set(range(10))


def test_normalised_images_are_standard():
    data = load("digits", None)
    images = data.prepare(data.train.inputs)
    assert images.dtype == torch.float32
    assert abs(float(images.mean())) < 0.01
    assert abs(float(images.std()) - 1) < 0.01


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize("inner", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_fashion_mnist_reads_idx_files(write_fashion_mnist, tmp_path, packed, inner):
    arrays = write_fashion_mnist(tmp_path / inner, packed)
    data = load("fashion-mnist", tmp_path)
    for examples, part in ((data.train, "train"), (data.test, "t10k")):
        np.testing.assert_array_equal(examples.inputs[:, 0].numpy(), arrays[part][0])
        np.testing.assert_array_equal(examples.labels.numpy(), arrays[part][1])


def test_digest_tells_data_apart(write_fashion_mnist, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_fashion_mnist(tmp_path / name, packed=False, seed=seed)
    a, b, c = (load("fashion-mnist", tmp_path / name) for name in "abc")
    assert a.digest() == b.digest() != c.digest()
    labels = a.test.labels.clone()
    labels[3] = (labels[3] + 1) % 10
    assert replace(a, test=replace(a.test, labels=labels)).digest() != a.digest(), "the test set counts, too"


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
def test_damaged_file_is_named(write_fashion_mnist, tmp_path, how, packed):
    write_fashion_mnist(tmp_path, packed)
    path = tmp_path / f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    damage(path, how)
    with pytest.raises(DataError, match=f"{path.name}.*undamaged copy"):
        load("fashion-mnist", tmp_path)


def test_other_image_sizes_are_refused(write_fashion_mnist, tmp_path):
    write_fashion_mnist(tmp_path, packed=False)
    for part, count in (("train", 40), ("t10k", 20)):
        header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in (count, 40, 30))
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(header + bytes(count * 40 * 30))
    with pytest.raises(
        DataError, match=r"are uint8\[40, 1, 40, 30\] and .* expected examples of shape \[1, 28, 28\]"
    ):
        load("fashion-mnist", tmp_path)


def test_mnist_is_not_fashion_mnist(write_fashion_mnist, tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    write_fashion_mnist(tmp_path, packed=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    monkeypatch.setattr(MNIST, "resources", [(file.name, hashlib.md5(file.read_bytes()).hexdigest())])
    with pytest.raises(
        DataError, match=r"ubyte.gz belongs to MNIST, not FashionMNIST; put FashionMNIST's files into fashion-mnist/"
    ):
        load("fashion-mnist", tmp_path)
    assert len(load("mnist", tmp_path).train) == 40


def test_own_folder_comes_first(write_fashion_mnist, tmp_path):
    write_fashion_mnist(tmp_path, packed=False, seed=1)
    arrays = write_fashion_mnist(tmp_path / "fashion-mnist", packed=False, seed=2)
    np.testing.assert_array_equal(load("fashion-mnist", tmp_path).train.inputs[:, 0].numpy(), arrays["train"][0])


def test_environment_names_the_folder(write_fashion_mnist, tmp_path, monkeypatch):
    write_fashion_mnist(tmp_path / "home" / "here", packed=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FEDMR_DATA_DIR", "~/here")
    assert len(load("fashion-mnist", None).train) == 40


def test_unknown_home_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMR_DATA_DIR", "~nosuchuser/data")
    with pytest.raises(ConfigError, match="cannot find the data folder: .*set data-dir=FOLDER"):
        load("digits", None)
    with pytest.raises(ConfigError, match="data-dir = '~nosuchuser/x'"):
        parse({"data-dir": "~nosuchuser/x"}, "test")
    with pytest.raises(DataError, match="no such file"):
        load("npz:~nosuchuser/x.npz", tmp_path)


def test_mismatched_files_are_refused(write_fashion_mnist, tmp_path):
    write_fashion_mnist(tmp_path, packed=False)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(b"\0\0\x08\x01\0\0\0\x07" + bytes(7))
    with pytest.raises(DataError, match="train files .* do not match"):
        load("fashion-mnist", tmp_path)


def test_missing_data_names_the_files(tmp_path, monkeypatch):
    from torchvision.datasets import FashionMNIST

    def no_network(*args, **kwargs):
        raise RuntimeError("Error downloading\ntrain-images")

    monkeypatch.setattr(FashionMNIST, "download", no_network)
    for download, words in (
        (True, "could not be downloaded (Error downloading train-images)"),
        (False, "data.download"),
    ):
        with pytest.raises(DataError) as caught:
            load("fashion-mnist", tmp_path, download=download)
        message = str(caught.value)
        assert "\n" not in message
        for part in (
            str(tmp_path),
            "train-images-idx3-ubyte[.gz]",
            "t10k-labels-idx1-ubyte[.gz]",
            "data-dir=",
            words,
        ):
            assert part in message


def test_downloads_only_if_allowed(tmp_path, monkeypatch, write_fashion_mnist):
    from torchvision.datasets import FashionMNIST

    asked = []

    def download(self):
        asked.append(self.root)
        write_fashion_mnist(tmp_path / "FashionMNIST" / "raw", packed=False)

    monkeypatch.setattr(FashionMNIST, "download", download)
    with pytest.raises(DataError):
        load("fashion-mnist", tmp_path)
    assert asked == []
    monkeypatch.setattr(FashionMNIST, "_load_data", lambda self: (None, None))
    assert len(load("fashion-mnist", tmp_path, download=True).train) == 40
    assert asked == [str(tmp_path)]


def test_unknown_data_set_is_refused():
    with pytest.raises(
        ConfigError, match="unknown data set 'imagenet'; choose one of breast-cancer, .*npz:PATH or module:function"
    ):
        load("imagenet", None)
    with pytest.raises(ConfigError, match="data.name: 'npz:' has no path; write npz:PATH"):
        load("npz:", None)


@pytest.mark.skipif(
    not [*Path(os.environ.get("FEDMR_DATA_DIR") or "/nowhere").glob("**/train-images-idx3-ubyte*")],
    reason="FEDMR_DATA_DIR does not name a folder with Fashion-MNIST",
)
def test_whole_fashion_mnist():
    data = load("fashion-mnist", None)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert data.train.labels.bincount().tolist() == [6000] * 10
    images = data.prepare(data.train.inputs)
    assert abs(float(images.mean())) < 0.01
    assert abs(float(images.std()) - 1) < 0.01


def test_mnist_has_its_own_folder_and_mean(write_fashion_mnist, tmp_path):
    arrays = write_fashion_mnist(tmp_path / "MNIST" / "raw", packed=True)
    write_fashion_mnist(tmp_path / "fashion-mnist", packed=False, seed=5)
    data = load("mnist", tmp_path)
    np.testing.assert_array_equal(data.train.inputs[:, 0].numpy(), arrays["train"][0])
    assert float(data.prepare(torch.tensor(255 * 0.1307))) == pytest.approx(0, abs=1e-6)


def own_arrays(**changes):
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (30, 3, 8, 8), dtype=np.uint8),
        "y_train": rng.integers(0, 4, 30),
        "x_test": rng.integers(0, 256, (9, 3, 8, 8), dtype=np.uint8),
        "y_test": np.arange(9) % 5,
    } | changes


@pytest.mark.parametrize("where", ["absolute", "in data-dir"])
def test_own_npz_file(tmp_path, where):
    arrays = own_arrays()
    np.savez(tmp_path / "mine.npz", **arrays)
    name = tmp_path / "mine.npz" if where == "absolute" else "mine.npz"
    data = load(f"npz:{name}", tmp_path)
    np.testing.assert_array_equal(data.train.inputs.numpy(), arrays["x_train"])
    np.testing.assert_array_equal(data.test.labels.numpy(), arrays["y_test"])
    assert (data.classes, data.input_shape) == (5, (3, 8, 8)), "a class that only the test set has counts, too"
    images = data.prepare(data.train.inputs)
    assert float(images.mean()) == pytest.approx(0, abs=1e-5)
    assert float(images.std(unbiased=False)) == pytest.approx(1, rel=1e-5)


def test_grey_images_need_no_channel_axis(tmp_path):
    np.savez(
        tmp_path / "grey.npz", **own_arrays(x_train=np.zeros((30, 8, 8), "u1"), x_test=np.zeros((9, 8, 8), "u1"))
    )
    data = load("npz:grey.npz", tmp_path)
    assert data.input_shape == (1, 8, 8)
    assert torch.isfinite(data.prepare(data.train.inputs)).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"x_train": np.zeros((30, 3, 8, 8), np.int32)},
            r"x_train of .* is int32\[30, 3, 8, 8\]; it must be uint8",
        ),
        ({"x_train": np.zeros((30, 3, 8, 8), "f4")}, r"different types, float32\[30, 3, 8, 8\] and uint8\["),
        ({"x_train": np.full((30, 4), np.nan)}, "x_train of .* has values that are NaN, infinite .* in example 0"),
        ({"x_train": np.diag([1.0] * 29 + [1e39])}, "x_train of .* in example 29"),
        ({"x_test": np.zeros(9, np.uint8)}, r"x_test of .* is uint8\[9\]; it must be uint8: images"),
        ({"x_test": np.zeros((9, 8), np.uint8)}, r"different shapes, uint8\[30, 3, 8, 8\] and uint8\[9, 8\]"),
        ({"owners": np.zeros(29, np.int64)}, r"owners of .* is int64\[29\]; expected 30 non-negative integers"),
        ({"owners_test": np.zeros(8, np.int64)}, r"owners_test of .* is int64\[8\]; expected 9 non-negative"),
        ({"y_train": np.zeros(29, np.int64)}, r"y_train of .* is int64\[29\]; expected 30 non-negative integers"),
        ({"y_test": np.zeros(9)}, r"y_test of .* is float64\[9\]"),
        ({"x_train": np.zeros((30, 3, 0, 8), "u1")}, "it must be uint8: images"),
        ({"y_train": np.full(30, 2**63, np.uint64)}, "expected 30 non-negative integers"),
        ({"y_train": np.full(30, 2**40)}, "has the label 1099511627776; expected 0 to 65535"),
        ({"y_test": np.full(9, -1)}, "expected 9 non-negative integers"),
        ({"x_train": np.zeros((0, 4)), "y_train": np.zeros(0, int)}, "y_train of .* at least one"),
        ({"x_test": np.zeros((0, 3, 8, 8), "u1"), "y_test": np.zeros(0, int)}, "at least one"),
    ],
)
def test_unfit_arrays_are_named(tmp_path, changes, words):
    np.savez(tmp_path / "mine.npz", **own_arrays(**changes))
    with pytest.raises(DataError, match=words):
        load(f"npz:{tmp_path / 'mine.npz'}", None)


def test_unreadable_npz_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none\.npz: no such file; write npz:FILE"):
        load("npz:none.npz", tmp_path)
    for content in (b"", b"PK\x03\x04 torn"):
        (tmp_path / f"{len(content)}.npz").write_bytes(content)
        with pytest.raises(DataError, match="it must be an npz file with x_train"):
            load(f"npz:{len(content)}.npz", tmp_path)
    np.savez(tmp_path / "half.npz", x_train=np.zeros((1, 2, 2), "u1"))
    np.savez_compressed(tmp_path / "packed.npz", **own_arrays())
    content = bytearray((tmp_path / "packed.npz").read_bytes())
    content[200:300] = bytes(100)
    (tmp_path / "packed.npz").write_bytes(content)
    with pytest.raises(DataError, match="packed.npz: .*it must be an npz file with x_train"):
        load("npz:packed.npz", tmp_path)
    with pytest.raises(DataError, match="File name too long|no such file"):
        load(f"npz:{'n' * 300}.npz", tmp_path)
    with pytest.raises(DataError, match="y_train.*; it must be an npz file with x_train, y_train, x_test and y_test"):
        load("npz:half.npz", tmp_path)


OWN = """
import dataclasses
from fedmr_flwr.config.data import Data
from fedmr_flwr.config.loading import parse
from fedmr_flwr.data import datasets

def load(folder):
    assert folder.name == "somewhere"
    return datasets.load(Data(), None)

def wrong(folder):
    return 3

def missing(folder):
    open(folder / "nowhere" / "x")

def short():
    pass

def unfit(folder):
    data = datasets.load(Data(), None)
    return dataclasses.replace(data, classes=5)

number = 7

def arrays(folder):
    data = datasets.load(Data(), None)
    return dataclasses.replace(data, train=(data.train.inputs.numpy(), data.train.labels.numpy()))

def owned(folder):
    data = datasets.load(Data(), None)
    return dataclasses.replace(data, owners=data.train.labels[:30])

def by_label(folder):
    data = datasets.load(Data(), None)
    return dataclasses.replace(data, owners=data.train.labels)

def plain(folder):
    return dataclasses.replace(datasets.load(Data(), None), normalisation=None)
"""


@pytest.fixture
def my_data(tmp_path, monkeypatch):
    (tmp_path / "my_data.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("def load(:")
    monkeypatch.syspath_prepend(tmp_path)


def test_own_loader(tmp_path, my_data):
    assert len(load("my_data:load", tmp_path / "somewhere").train) == 1438
    images = load("my_data:plain", tmp_path)
    assert abs(float(images.prepare(images.train.inputs).mean())) < 1e-5, "images are never fed as bytes"


def test_wrong_own_loaders_are_refused(tmp_path, my_data):
    for name, words in {
        "my_data:wrong": "returned int, expected fedmr_flwr.Dataset, or one or two of torch",
        "my_data:missing": "'my_data:missing' failed with FileNotFoundError",
        "my_data:short": "'my_data:short' failed with TypeError",
        "my_data:number": "'my_data:number' failed with TypeError: 'int' object is not callable",
        "my_data:arrays": "'my_data:arrays' must return tensors on the CPU",
        "my_data:owned": r"owners of 'my_data:owned' is int64\[30\]; expected 1438 non-negative integers",
        "broken:load": "'broken:load' cannot be imported: .*invalid syntax",
        "my_data:unfit": "y_train of 'my_data:unfit' has the label 9; expected 0 to 4",
        "my_data:nothing": "cannot be imported: AttributeError: module 'my_data' has no attribute 'nothing'",
        "nowhere:load": "cannot be imported: No module named 'nowhere'; it must be in the current folder or on",
        ":load": "cannot be imported",
    }.items():
        with pytest.raises(FedmrError, match=words):
            load(name, tmp_path)


def test_npz_may_hold_owners_and_texts(tmp_path):
    rng = np.random.default_rng(0)
    texts = {"x_train": rng.integers(0, 7, (30, 5), dtype=np.uint8), "x_test": rng.integers(0, 9, (9, 5), dtype="u1")}
    texts["x_test"][0, 0] = 8
    owners = {"owners": np.arange(30) // 10, "owners_test": np.arange(9) // 3}
    np.savez(tmp_path / "mine.npz", **own_arrays(**texts), **owners)
    data = load("npz:mine.npz", tmp_path)
    assert data.owners.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert data.test_owners.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert (data.input_shape, data.classes) == ((5,), 9), "a character that is never a label counts, too"
    assert data.prepare(data.train.inputs) is data.train.inputs
    with pytest.raises(ConfigError, match="data.normalisation is none, but text has no pixels"):
        load("npz:mine.npz", tmp_path, normalisation="none")


@pytest.mark.parametrize("name", ["digits", "npz:mine.npz", "fashion-mnist", "my_data:load"])
def test_normalisation_modes(name, tmp_path, monkeypatch, write_fashion_mnist):
    rng = np.random.default_rng(0)
    coloured = rng.integers(0, 100, (30, 3, 8, 8), dtype=np.uint8) + np.array([0, 50, 155], np.uint8)[:, None, None]
    np.savez(tmp_path / "mine.npz", **own_arrays(x_train=coloured))
    write_fashion_mnist(tmp_path, packed=False)
    (tmp_path / "my_data.py").write_text(OWN.replace('"somewhere"', f'"{tmp_path.name}"'))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_data", raising=False)
    data = load(name, tmp_path, normalisation="measured")
    images = data.prepare(data.train.inputs).double()
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(images.shape[1]).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3), unbiased=False), torch.ones(images.shape[1]).double())
    data = load(name, tmp_path, normalisation="none")
    white = 16 if name in ("digits", "my_data:load") else 255
    torch.testing.assert_close(data.prepare(data.train.inputs), data.train.inputs / white)


def test_published_normalisations(write_fashion_mnist, tmp_path):
    write_fashion_mnist(tmp_path, packed=False)
    for name, mean, std in (("mnist", 0.1307, 0.3081), ("fashion-mnist", 0.286, 0.353)):
        images = load(name, tmp_path).prepare(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
        assert images.flatten().tolist() == pytest.approx([-mean / std, (1 - mean) / std], rel=1e-6)


def test_normalisation_is_differentiable():
    normalise = Normalisation((0.123,), (0.456,))
    with torch.inference_mode():
        normalise(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    images = torch.zeros(1, 1, 2, 2, requires_grad=True)
    normalise(images).square().sum().backward()
    assert images.grad is not None


def test_channels_normalise_separately():
    normalise = Normalisation((0.5, 0.25, 0.0), (0.5, 0.25, 2.0), white=10.0)
    images = torch.tensor([[[[10]], [[10]], [[10]]], [[[5]], [[0]], [[0]]]], dtype=torch.uint8)
    assert normalise(images).flatten().tolist() == [1.0, 3.0, 0.5, 0.0, -1.0, 0.0]


def test_known_form_needs_no_files(tmp_path):
    known = {name: datasets.form_of(Data(name=name), tmp_path, 0) for name in datasets.DATASETS}
    assert known["cifar100-coarse"] == ((3, 32, 32), 20, False)
    assert known["femnist"] == ((1, 28, 28), 62, False)
    assert known["shakespeare"] == ((80,), 80, True)
    np.savez(tmp_path / "mine.npz", **own_arrays())
    assert datasets.form_of(Data(name="npz:mine.npz"), tmp_path, 0) == ((3, 8, 8), 5, False)


def few(count, seed=0):
    return datasets.load(Data(train_examples=count), None, seed)


def test_a_part_of_the_training_examples_has_as_many_of_each_class():
    assert few(200).train.labels.bincount().tolist() == [20] * 10


def test_a_class_with_too_few_examples_gives_all_it_has():
    counts = datasets.load(Data(), None).train.labels.bincount().tolist()
    smallest = min(counts)
    drawn = few(10 * (smallest + 1)).train.labels.bincount().tolist()
    assert min(drawn) == smallest
    assert sum(drawn) == 10 * (smallest + 1)


def test_a_part_of_the_training_examples_leaves_the_test_set_whole():
    assert torch.equal(few(200).test.inputs, datasets.load(Data(), None).test.inputs)


def test_another_seed_draws_other_training_examples():
    assert few(200, seed=0).digest() == few(200, seed=0).digest() != few(200, seed=1).digest()


def test_all_training_examples_drawn_are_the_data_set():
    whole = datasets.load(Data(), None)
    assert few(len(whole.train)).digest() == whole.digest()


def test_drawn_examples_keep_their_authors(my_data):
    dataset = datasets.load(Data(name="my_data:by_label", train_examples=100), my_data, 3)
    assert torch.equal(dataset.owners, dataset.train.labels)


def test_more_training_examples_than_there_are_is_an_error():
    with pytest.raises(DataError, match="is 10000, but the data set has 1438 training examples$"):
        few(10_000)


def test_drawing_from_the_servers_data_needs_clients_that_use_it():
    with pytest.raises(ConfigError, match="data.train-examples: it draws from the server's data set"):
        parse({"data": {"train-examples": 100}, "partition": {"name": "nodes"}}, "test")


@pytest.mark.parametrize(
    ("partition", "words"),
    [
        ("nodes", "data.validation: it draws from the server's data set"),
        ("file:a.npz", "names all of them by their num"),
    ],
)
def test_validation_needs_a_partition_of_what_is_left(partition, words):
    with pytest.raises(ConfigError, match=words):
        parse({"data": {"validation": 0.1}, "partition": {"name": partition}}, "test")


@pytest.mark.parametrize(
    ("name", "option", "users"),
    [
        ("digits", {"size": 16}, "folder:PATH or hf:PATH"),
        ("npz:mine.npz", {"label": "y"}, "csv:PATH or hf:PATH"),
        ("mine:load", {"client": "site"}, "csv:PATH or hf:PATH"),
        ("csv:mine.csv", {"text": "words"}, "hf:PATH"),
    ],
)
def test_options_without_effect_are_refused(name, option, users):
    (key,) = option
    with pytest.raises(ConfigError, match=f"data.{key}: data.name={name} does not use it; .* choose {users}"):
        parse({"data": {"name": name, **option}}, "test")
    parse({"data": {"name": name, **option}, "partition": {"name": "nodes"}}, "test")


def test_scoring_on_clients_examples_needs_those_that_the_server_has():
    with pytest.raises(
        ConfigError, match="evaluation.train: it scores training examples, but .* or use evaluation.clients"
    ):
        parse({"evaluation": {"train": "end"}, "partition": {"name": "nodes"}}, "test")


@pytest.mark.parametrize("shape", [(5,), (3, 8, 8), (7, 3), (2, 4, 4, 4)], ids=str)
@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_float_arrays_stay_as_they_are(tmp_path, shape, kind):
    rng = np.random.default_rng(0)
    floats = {
        f"x_{part}": rng.normal(size=(count, *shape)).astype(kind) for part, count in (("train", 30), ("test", 9))
    }
    np.savez(tmp_path / "mine.npz", **own_arrays(**floats))
    data = load("npz:mine.npz", tmp_path)
    assert (data.input_shape, data.classes, data.normalisation, data.text) == (shape, 5, None, False)
    np.testing.assert_array_equal(data.prepare(data.train.inputs), floats["x_train"].astype("f4"))
    with pytest.raises(ConfigError, match="data.normalisation is none, but float values have no pixels"):
        load("npz:mine.npz", tmp_path, normalisation="none")


def test_breast_cancer_is_scaled_by_its_training_part():
    data = load("breast-cancer", None)
    assert (len(data.train), len(data.test), data.classes, data.text) == (456, 113, 2, False)
    torch.testing.assert_close(data.train.inputs.mean(0), torch.zeros(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train.inputs.std(0, unbiased=False), torch.ones(30))
    assert data.test.inputs.mean().abs() > 1e-3


ITEMS = """
import torch
from torch.utils.data import Dataset, TensorDataset

def floats(folder):
    return TensorDataset(torch.arange(60.0).reshape(20, 3), torch.arange(20) % 2)

def both(folder):
    return floats(folder), TensorDataset(torch.ones(4, 3), torch.tensor([0, 1, 1, 2]))

def bytes(folder):
    return TensorDataset(torch.arange(20 * 16).reshape(20, 1, 4, 4).to(torch.uint8), torch.arange(20) % 2)

def regression(folder):
    return TensorDataset(torch.ones(20, 3), torch.rand(20))

def alone(folder):
    return TensorDataset(torch.ones(20, 3))

class Growing(Dataset):
    def __len__(self):
        return 9
    def __getitem__(self, at):
        return torch.ones(1 + at), 0

def growing(folder):
    return Growing()

def empty(folder):
    return TensorDataset(torch.ones(0, 3), torch.ones(0))

class Texts(Growing):
    def __getitem__(self, at):
        return "a", 0

def texts(folder):
    return Texts()
"""


@pytest.fixture
def items(tmp_path, monkeypatch):
    (tmp_path / "my_items.py").write_text(ITEMS)
    monkeypatch.syspath_prepend(tmp_path)


def test_items_of_pytorch(items):
    data = datasets.load(Data(name="my_items:floats"), None, 0)
    assert (len(data.train), len(data.test), data.classes, data.input_shape) == (16, 4, 2, (3,))
    assert torch.equal(data.train.labels, (data.train.inputs[:, 0] / 3).long() % 2)
    other = datasets.load(Data(name="my_items:floats"), None, 1)
    assert other.digest() != data.digest(), "the seed draws the test part"
    both = datasets.load(Data(name="my_items:both"), None, 0)
    assert (len(both.train), len(both.test), both.classes) == (20, 4, 3)
    images = datasets.load(Data(name="my_items:bytes"), None, 0)
    assert abs(float(images.prepare(images.train.inputs).mean())) < 1e-5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "regression",
            "the label of item 0 of 'my_items:regression' is not a whole number; only classes can be learned",
        ),
        ("alone", "item 0 of 'my_items:alone' is a tuple; it must be an input and its label"),
        ("growing", r"items 0 and 1 of .* differ, float32\[1\] and float32\[2\]; all must have one type and shape"),
        ("empty", "returned a data set without a length, or without items"),
        ("texts", "the input of item 0 of .* is a str; it must be a tensor or an array"),
    ],
)
def test_unfit_items_are_one_line(items, name, words):
    with pytest.raises(DataError, match=words):
        datasets.load(Data(name=f"my_items:{name}"), None, 0)


@pytest.mark.parametrize(("largest", "said"), [(255, True), (7, True), (6, False), (3, False)])
def test_a_label_far_above_the_others_is_said(tmp_path, largest, said):
    labels = np.where(np.arange(40) % 4 == 3, largest, np.arange(40) % 4)
    images = np.zeros((40, 8, 8), np.uint8)
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    data = Data(name=f"npz:{tmp_path / 'own.npz'}")
    line = datasets.unused_labels(data, datasets.load(data, tmp_path))
    assert (line is not None) == said
    if line:
        assert f"4 different labels, the largest of which is {largest}" in line
