import io

import httpx
import pytest
import torch
from datasets import (
    BuilderConfig,
    ClassLabel,
    Dataset,
    DatasetDict,
    DatasetInfo,
    Features,
    GeneratorBasedBuilder,
    Image,
    SplitGenerator,
    Value,
    config,
)
from PIL import Image as Pictures

from fedmr_flwr.config.data import Data
from fedmr_flwr.config.partition import Partition
from fedmr_flwr.data import datasets, partitions
from fedmr_flwr.data.own import ExampleFormat
from fedmr_flwr.errors import DataError


def load(folder, seed=0, **options):
    return datasets.load(Data(name=f"hf:{folder}", **options), None, seed)


def picture(value, size=(5, 4)):
    file = io.BytesIO()
    Pictures.new("RGB", size, (value, 0, 0)).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def pictures(count=20, **columns):
    features = {"image": Image(), "label": ClassLabel(names=["day", "night"]), "writer": Value("string")}
    rows = {
        "image": [picture(at, (5 + at % 2, 4)) for at in range(count)],
        "label": [at % 2 for at in range(count)],
        "writer": [f"w{at % 3}" for at in range(count)],
    }
    return Dataset.from_dict(rows | columns, Features(features))


def test_images_of_a_saved_data_set(tmp_path):
    pictures().save_to_disk(tmp_path / "set")
    data = load(tmp_path / "set", size=4)
    assert (data.input_shape, data.classes, data.facts.names) == ((3, 4, 4), 2, ("day", "night"))
    assert (len(data.train), len(data.test), data.facts.inputs) == (16, 4, "image")
    assert torch.equal(data.train.inputs[:, 0, 0, 0].long() % 2, data.train.labels)


def test_splits_stay(tmp_path):
    DatasetDict(train=pictures(9), test=pictures(4)).save_to_disk(tmp_path / "set")
    data = load(tmp_path / "set", size=4)
    assert data.train.inputs[:, 0, 0, 0].tolist() == [*range(9)]
    assert data.test.labels.tolist() == [0, 1, 0, 1]


def test_clients_are_natural(tmp_path):
    pictures().save_to_disk(tmp_path / "set")
    data = load(tmp_path / "set", size=4, client="writer")
    parts = partitions.split(data, 3, Partition(name="natural"), 0)
    for part in parts:
        assert len({value % 3 for value in data.train.inputs[part][:, 0, 0, 0].tolist()}) == 1


def test_texts_are_bytes(tmp_path):
    texts = ["Zürich", "ab", "c" * 9] * 5
    Dataset.from_dict({"text": texts, "label": ["yes", "no", "no"] * 5}).save_to_disk(tmp_path / "set")
    data = load(tmp_path / "set", size=4)
    assert (data.text, data.input_shape, data.classes) == (True, (4,), 256)
    found = {bytes(row.tolist()) for row in data.train.inputs}
    assert found == {"Zür".encode(), b"ab\0\0", b"cccc"}


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (pictures, {"label": "lable"}, "has no column 'lable'; its columns are 'image', 'label', 'writer'"),
        (pictures, {"client": "author"}, "has no column 'author'; its columns are 'image'"),
        (pictures, {"image": "label"}, "the column 'label' of .* has no images or texts"),
        (pictures, {"size": None}, "set data.size, to which all are resized"),
        (lambda: pictures(label=[-1, *[0, 1] * 9, 0]), {}, "part of .* has an example without a label, -1"),
        (
            lambda: pictures(image=[{"bytes": b"?", "path": None}] * 20),
            {},
            "the image in row 1 of hf:.*readable",
        ),
        (lambda: pictures(image=[None] * 20), {}, "the column 'image' of .* has no image in row 1"),
        (lambda: pictures(label=[None] * 20), {}, "the column 'label' of .* has no value in row 1"),
        (
            lambda: Dataset.from_dict({"a": ["x"], "b": ["y"], "label": [1]}),
            {},
            "has 2 columns of images or texts",
        ),
        (lambda: Dataset.from_dict({"a": ["x"], "label": [1.5]}), {}, "the label 'label' of .* is a number; only"),
        (lambda: DatasetDict(a=pictures(), b=pictures()), {}, "has no split 'train'; its splits are 'a', 'b'"),
        (
            lambda: DatasetDict(train=pictures(label=[0] * 20), test=pictures()),
            {},
            "label 'night' occurs only in",
        ),
    ],
)
def test_unfit_data_set_is_one_line(tmp_path, make, options, words):
    make().save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=words) as caught:
        load(tmp_path / "set", **{"size": 4} | options)
    assert "\n" not in str(caught.value)


class Pets(GeneratorBasedBuilder):
    """A data set with two subsets, each of whose texts has the subset's name."""

    BUILDER_CONFIGS = (BuilderConfig("small"), BuilderConfig("large"))

    def _info(self):
        return DatasetInfo(features=Features(text=Value("string"), label=Value("int64")))

    def _split_generators(self, _):
        return [SplitGenerator("train")]

    def _generate_examples(self):
        yield from ((row, {"text": f"{self.config.name}{row}", "label": row % 2}) for row in range(20))


class One(Pets):
    """It has no subsets."""

    BUILDER_CONFIGS = (BuilderConfig("default"),)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Put data sets into a cache as those of the Hub are stored there."""
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path)
    for kind, name in ((Pets, "pets"), (One, "one")):
        for subset in kind.BUILDER_CONFIGS:
            kind(
                cache_dir=tmp_path, dataset_name=name, repo_id=f"nobody/{name}", config_name=subset.name, hash="abc"
            ).download_and_prepare()


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize(("name", "first"), [("one", "default"), ("pets:small", "small"), ("pets:large", "large")])
def test_cache_needs_no_network(cached, monkeypatch, name, first, download):
    if download:  # the library's own switch, HF_HUB_OFFLINE=1, is stronger
        monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    data = load(f"nobody/{name}", size=9, download=download)
    texts = [bytes(row.tolist()).rstrip(b"\0").decode() for part in (data.train, data.test) for row in part.inputs]
    assert sorted(texts) == sorted(f"{first}{row}" for row in range(20))


@pytest.mark.parametrize("name", ["pets", "pets:huge"])
def test_subset_that_is_not_there_is_one_line(cached, name):
    with pytest.raises(DataError, match=r"cannot read hf:nobody/pets.*large.*; write .* hf:NAME:SUBSET") as caught:
        load(f"nobody/{name}")
    assert "\n" not in str(caught.value)


def test_name_that_is_not_there_is_one_line(monkeypatch):
    def no_network(*_, **__):
        raise httpx.ConnectError("Name or service not known")

    asked = []
    monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", lambda *_, **__: asked.append(1) or no_network())
    for download in (False, True):
        with pytest.raises(DataError, match="cannot read hf:nobody/nothing: .*data.download=true") as caught:
            load("nobody/nothing", download=download)
        assert "\n" not in str(caught.value)
        assert bool(asked) == download, "the Hub is asked only if it may be"


def test_missing_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the package datasets; install .* 'fedmr-flwr\[hf\]'"):
        load(tmp_path)


def test_node_reads_the_servers_columns(tmp_path):
    pictures().save_to_disk(tmp_path / "set")
    server = load(tmp_path / "set", size=4)
    pictures(6).rename_column("writer", "place").save_to_disk(tmp_path / "node")
    form = ExampleFormat(server.input_shape, server.classes, server.facts)
    train, tests = datasets.read_examples(f"hf:{tmp_path / 'node'}", Data(client="writer"), form)
    assert (train.inputs.shape, train.labels.tolist(), tests) == ((6, 3, 4, 4), [0, 1] * 3, None)
