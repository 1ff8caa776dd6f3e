"""Data sets of the Hub over HTTP: what is stored there, asked of a Hub of this machine."""

import io
import json
import os
import subprocess
import sys

import pytest
from datasets import ClassLabel, Dataset, Features, Image, config
from huggingface_hub import constants

from fedmr_flwr.errors import DataError
from tests.data.test_hub import load, picture
from tests.support.hub import Hub

PROGRAM = """
import json, sys
from tests.data.test_hub import load

for download in json.loads(sys.argv[1]):
    data = load("someone/tiny", size=4, download=download)
    parts = [(part.inputs[:, 0, 0, 0].tolist(), part.labels.tolist()) for part in (data.train, data.test)]
    print(json.dumps([data.facts.names, *parts]))
"""
NAMES = ["day", "night"]
TRAIN, TEST = [[0, 1, 2, 3], [0, 1, 1, 0]], [[7, 8], [0, 1]]


def parquet(values, labels):
    features = Features(image=Image(), label=ClassLabel(names=NAMES))
    file = io.BytesIO()
    Dataset.from_dict({"image": [*map(picture, values)], "label": labels}, features).to_parquet(file)
    return file.getvalue()


@pytest.mark.e2e
@pytest.mark.slow  # two processes import PyTorch
def test_data_set_is_downloaded_once(tmp_path):
    # HF_HOME: a cache of its own. Downloads would be counted at an address outside of this machine.
    own = {"HF_HOME": str(tmp_path), "HF_UPDATE_DOWNLOAD_COUNTS": "0"}

    def found(*downloads):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(downloads)],
            env=os.environ | own | {"HF_ENDPOINT": hub.address}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return [json.loads(line) for line in done.stdout.splitlines()]

    with Hub({"someone/tiny": {"train.parquet": parquet(*TRAIN), "test.parquet": parquet(*TEST)}}) as hub:
        assert found(True) == [[NAMES, TRAIN, TEST]]
    files = sorted(path.rpartition("/")[2] for path in hub.asked if path.startswith("GET /datasets/"))
    assert files == ["test.parquet", "train.parquet"]
    # The Hub is gone; were it asked, the library would try for half a minute.
    assert found(True, False) == [[NAMES, TRAIN, TEST]] * 2


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that this process asks, with a data set without files, and one about which it says nothing."""
    with Hub({"someone/empty": {}, "someone/cut": None}) as hub:
        monkeypatch.setattr(config, "HF_ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.replace("https://huggingface.co", hub.address)
        )
        monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path)
        monkeypatch.setattr(config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
        yield hub


def refusal(name, **options):
    with pytest.raises(DataError, match=f"cannot read hf:{name}: ") as caught:
        load(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_hub_is_not_asked_without_leave(hub):
    assert "it is not in the local cache; write" in refusal("someone/empty")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "words"),
    [("missing", "doesn't exist on the Hub"), ("cut", "disconnected"), ("empty", "EmptyDatasetError")],
)
def test_failing_hub_is_one_line(hub, name, words):
    assert words in refusal(f"someone/{name}", download=True)
    assert any(f"/datasets/someone/{name}/" in path for path in hub.asked)
