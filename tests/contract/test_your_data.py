"""Every example of docs/guides/your-data.md trains, on small files in their true format."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pictures
from sklearn.datasets import load_wine

from fedmr_flwr.config.loading import load
from tests.support.runs import run

CONF = Path(__file__).parents[2] / "conf"
PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "your-data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
RUNS = [block for block in BLOCKS if "clients" in block]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Write a file of every kind into a folder."""
    rng = np.random.default_rng(0)
    for at in range(30):
        path = tmp_path / "pets" / ("cat", "dog")[at % 2] / f"{at}.{('png', 'jpg')[at % 3 == 0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Pictures.new("RGB" if at % 4 else "L", (20 + at, 30), int(rng.integers(256))).save(path)
    rows = [f'{rng.normal():.3f},"{("a, b", "c")[at % 2]}",h{at % 3},{("ill", "well")[at % 2]}\n' for at in range(60)]
    (tmp_path / "patients.csv").write_text("".join(["dose,ward,hospital,outcome\n", *rows]))
    pictures = []
    for _ in range(30):
        Pictures.fromarray(rng.integers(0, 255, (9, 8), np.uint8)).save(content := io.BytesIO(), "png")
        pictures.append({"bytes": content.getvalue(), "path": None})
    columns = {
        "image": pictures,
        "label": [at % 3 for at in range(30)],
        "writer": [f"w{at // 10}" for at in range(30)],
    }
    features = {"image": Image(), "label": ClassLabel(names=["a", "b", "c"]), "writer": Value("string")}
    Dataset.from_dict(columns, Features(features)).save_to_disk(tmp_path / "digits")
    np.savez(
        tmp_path / "signals.npz", x_train=rng.normal(size=(30, 2, 7)), y_train=np.arange(30) % 2,
        x_test=rng.normal(size=(9, 2, 7)), y_test=np.arange(9) % 2,
    )  # fmt: skip
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "points.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_page_has_an_example_of_each_kind():
    kinds = {yaml.safe_load(block)["data"]["name"].partition(":")[0] for block in RUNS}
    assert kinds == {"csv", "folder", "hf", "npz", "points"}


@pytest.mark.filterwarnings("ignore:Classes")  # flwr-datasets warns of classes that no client has
@pytest.mark.parametrize("block", RUNS, ids=lambda block: block.splitlines()[0])
def test_example_trains(block, files, no_pictures):
    (files / "mine.yaml").write_text(block)
    small = ["rounds=1", "training.local-epochs=1", "engine=in-process", "device=cpu"]
    settings = load(files / "mine.yaml", [*small, f"data-dir={files}", f"run-dir={files / 'run'}"])
    out = run(settings)
    (row,) = out.read_rows()
    assert (row["replies"], row["failures"]) == (settings.clients_per_round, 0)


@pytest.mark.parametrize("model", ["logistic", "mlp"])
def test_wine_is_learnt(tmp_path, no_pictures, model):
    load_wine(as_frame=True).frame.to_csv(tmp_path / "wine.csv", index=False)
    settings = load(
        CONF / "table.yaml",
        [
            f"data.name=csv:{tmp_path / 'wine.csv'}", "data.label=target", f"model.name={model}", "clients=4",
            "clients-per-round=4", "partition.alpha=1.0", "rounds=8", f"run-dir={tmp_path / 'run'}",
            "engine=in-process", "device=cpu",
        ],
    )  # fmt: skip
    rows = run(settings).read_rows()
    assert rows[0]["test-accuracy"] < rows[-1]["test-accuracy"]
    assert rows[-1]["test-accuracy"] > 0.9
