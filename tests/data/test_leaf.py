import json

import numpy as np
import pytest
import torch

from fedmr_flwr.config.data import Data
from fedmr_flwr.data import augmentation, datasets
from fedmr_flwr.data.leaf import CHARACTERS
from fedmr_flwr.errors import DataError


def load(name, folder):
    return datasets.load(Data(name=name), folder)


def write(path, users):
    """Write a file as LEAF does: {user: {x, y}}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = [len(data["y"]) if isinstance(data, dict) and "y" in data else 0 for data in users.values()]
    path.write_text(json.dumps({"users": [*users], "num_samples": counts, "user_data": users}))


def images(*labels, seed=0):
    rng = np.random.default_rng([seed, *labels])
    pixels = rng.integers(0, 256, (len(labels), 784))
    return {"x": (pixels / 255).tolist(), "y": [*labels]}, pixels.reshape(-1, 28, 28)


@pytest.mark.parametrize("inner", ["", "femnist", "femnist/data"])
def test_femnist_reads_several_files(tmp_path, inner):
    folder = tmp_path / inner
    (one, one_x), (two, two_x), (three, three_x), (more, more_x) = images(3, 61), images(0), images(5, 5), images(7)
    write(folder / "train" / "all_data_0.json", {"f0001_41": one, "f0002_13": two})
    write(folder / "train" / "all_data_1.json", {"f0003_07": three, "f0001_41": more})
    write(folder / "test" / "all_data_0.json", {"f0002_13": two})
    data = load("femnist", tmp_path)
    np.testing.assert_array_equal(data.train.inputs[:, 0].numpy(), np.concatenate([one_x, two_x, three_x, more_x]))
    assert data.train.labels.tolist() == [3, 61, 0, 5, 5, 7]
    assert data.owners.tolist() == [0, 0, 1, 2, 2, 0], "the writer who is in two files is one writer"
    np.testing.assert_array_equal(data.test.inputs[:, 0].numpy(), two_x)
    assert data.test_owners.tolist() == [1], "by the same number as in the training set"
    assert (data.classes, data.input_shape) == (62, (1, 28, 28))


def test_writers_of_the_test_set_may_be_new(tmp_path):
    (one, _), (two, _) = images(1), images(2)
    write(tmp_path / "train" / "a.json", {"u": one})
    write(tmp_path / "test" / "a.json", {"new": two, "u": one})
    data = load("femnist", tmp_path)
    assert (data.owners.tolist(), data.test_owners.tolist()) == ([0], [1, 0])


def test_pixels_are_rounded(tmp_path):
    pixels = np.resize(np.arange(256), 784)
    for part in ("train", "test"):
        write(tmp_path / part / "a.json", {"u": {"x": [np.round(pixels / 255, 4).tolist()], "y": [1]}})
    assert load("femnist", tmp_path).train.inputs.flatten().tolist() == pixels.tolist()


def test_test_set_joins_all_files(tmp_path):
    (one, _), (two, _) = images(1), images(2)
    write(tmp_path / "train" / "a.json", {"u": one})
    write(tmp_path / "train" / "._a.json", {})  # as macOS leaves behind
    write(tmp_path / "test" / "a.json", {"u": one})
    write(tmp_path / "test" / "b.json", {"v": two})
    assert load("femnist", tmp_path).test.labels.tolist() == [1, 2]


def test_labels_of_the_test_set_are_checked(tmp_path):
    for part, label in (("train", 1), ("test", 62)):
        write(tmp_path / part / "a.json", {"u": images(label)[0]})
    with pytest.raises(DataError, match="y_test of .* has the label 62"):
        load("femnist", tmp_path)


def test_own_folder_comes_first(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / part / "a.json", {"HAMLET": {"x": ["a" * 80], "y": ["b"]}})
        write(tmp_path / "femnist" / part / "a.json", {"u": images(1)[0]})
    assert load("femnist", tmp_path).classes == 62
    assert load("shakespeare", tmp_path).classes == 80


def test_duplicate_user_is_refused(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / part / "a.json", {"u": images(1)[0]})
    path = tmp_path / "train" / "a.json"
    path.write_text(path.read_text().replace('"users": ["u"]', '"users": ["u", "u"]'))
    with pytest.raises(DataError, match=r"a.json: it lists a user twice"):
        load("femnist", tmp_path)


def test_padding_is_white(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / part / "a.json", {"u": {"x": [[1.0] * 784], "y": [1]}})
    data = load("femnist", tmp_path)
    moved = augmentation.crop_and_flip(data.train.inputs, torch.tensor([[0, 0, 0]]), data.background)
    assert torch.equal(moved, data.train.inputs)


def test_femnist_is_inverted(tmp_path):
    user, pixels = images(1)
    for part in ("train", "test"):
        write(tmp_path / part / "a.json", {"u": user})
    data = load("femnist", tmp_path)
    expected = (0.5 - pixels / 255) / 0.5
    np.testing.assert_allclose(data.prepare(data.train.inputs)[:, 0].numpy(), expected, atol=1e-6)


def test_shakespeare_becomes_indices(tmp_path):
    assert len(CHARACTERS) == len(set(CHARACTERS)) == 80
    assert [CHARACTERS.index(some) for some in "\n !0AZ[]az}"] == [0, 1, 2, 11, 25, 50, 51, 52, 53, 78, 79]
    first, second = "\n " + "ab}" * 26, "Z" * 80
    write(tmp_path / "train" / "a.json", {"HAMLET": {"x": [first, second], "y": ["!", "}"]}})
    write(tmp_path / "train" / "b.json", {"KING": {"x": [second], "y": ["\n"]}, "SILENT": {"x": [], "y": []}})
    write(tmp_path / "test" / "a.json", {"HAMLET": {"x": [first], "y": ["a"]}})
    data = load("shakespeare", tmp_path)
    decoded = ["".join(CHARACTERS[number] for number in text) for text in data.train.inputs.tolist()]
    assert decoded == [first, second, second]
    assert [CHARACTERS[label] for label in data.train.labels.tolist()] == ["!", "}", "\n"]
    assert data.owners.tolist() == [0, 0, 1]
    assert (data.classes, data.input_shape, data.normalisation) == (80, (80,), None)


BLANK = [0.0] * 784


@pytest.mark.parametrize(
    ("name", "user", "words"),
    [
        ("femnist", {"x": [BLANK, BLANK], "y": [1]}, "user u in .* has 2 inputs but 1 labels"),
        ("femnist", {"x": [[0.0] * 783], "y": [1]}, "user u in .*: .*create the file again"),
        ("femnist", {"x": [[2.0] * 784], "y": [1]}, "user u in .* has pixels outside of 0 to 1"),
        ("femnist", {"x": [[float("nan")] * 784], "y": [1]}, "has pixels outside of 0 to 1"),
        ("femnist", {"x": [["?"] * 784], "y": [1]}, "user u in .*"),
        ("femnist", {"x": [BLANK], "y": [62]}, "has the label 62; expected 0 to 61"),
        ("femnist", {"x": [BLANK], "y": [-1]}, "expected 1 non-negative integers"),
        ("femnist", {"y": [1]}, "user u in .* KeyError 'x'"),
        ("femnist", {"x": [BLANK]}, "user u in .* KeyError 'y'"),
        ("femnist", {"x": [BLANK], "y": []}, "has 1 inputs but 0 labels"),
        ("femnist", {"x": [BLANK], "y": [3.7]}, "labels must be integers"),
        ("femnist", {"x": [BLANK], "y": ["3"]}, "labels must be integers"),
        ("femnist", {"x": [], "y": []}, "train has no examples"),
        ("femnist", None, "user u in .* TypeError"),
        ("femnist", [BLANK], "user u in .* TypeError"),
        ("shakespeare", {"x": ["a" * 79, "a" * 81], "y": ["a", "b"]}, "each text must have 80 characters"),
        ("shakespeare", {"x": ["a" * 79 + "\ud800"], "y": ["a"]}, "user u in .*surrogates"),
        (
            "shakespeare",
            {"x": ["é" * 80], "y": ["a"]},
            "user u in .* has the character 'é', which is not among LEAF's 80",
        ),
        ("shakespeare", {"x": ["a" * 79], "y": ["a"]}, "user u in .*"),
        ("shakespeare", {"x": ["a" * 80], "y": ["ab"]}, "each text must have 1 characters"),
        ("shakespeare", {"x": [3], "y": ["a"]}, "user u in .* TypeError"),
    ],
)
def test_unfit_user_is_named(tmp_path, name, user, words):
    for part in ("train", "test"):
        write(tmp_path / part / "a.json", {"u": user})
    with pytest.raises(DataError, match=words) as caught:
        load(name, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"users": ["a"], "user_data": {}}', "\xff"])
def test_foreign_file_is_named(tmp_path, content):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"cannot read .*train/a.json: .*must have LEAF's users and user_data"):
        load("femnist", tmp_path)


@pytest.mark.parametrize("name", ["femnist", "shakespeare"])
def test_missing_data_names_the_folder(tmp_path, name):
    (tmp_path / "train").mkdir()
    with pytest.raises(
        DataError, match=f"{name} is not in .*train and test.*data/{name}/preprocess.sh.*data-dir=FOLDER"
    ):
        load(name, tmp_path)
