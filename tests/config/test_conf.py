"""Every file in conf/ is a run that works."""

import re
from pathlib import Path

import pytest

from fedmr_flwr import models
from fedmr_flwr.algorithms.fedmr import FedMROptions
from fedmr_flwr.config.loading import load
from fedmr_flwr.config.partition import Partition
from fedmr_flwr.config.training import Training
from fedmr_flwr.data import datasets
from tests.support.runs import run

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted(CONF.glob("*.yaml"))


@pytest.fixture
def data_dir(tmp_path, write_fashion_mnist, write_cifar, write_femnist, write_shakespeare):
    """A folder with small data sets in their true formats, in the place and of the shape of the real ones."""
    write_fashion_mnist(tmp_path / "data", packed=True, train=200)
    for name, count in (("CIFAR10", 20), ("CIFAR100", 60)):  # in each file, of which CIFAR-10 has five for training
        write_cifar(tmp_path / "data", name, count=count)
    write_femnist(tmp_path / "data" / "femnist", writers=5)
    write_shakespeare(tmp_path / "data" / "shakespeare", roles=5)
    return tmp_path / "data"


def slow_if_large(path):
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if re.search("vgg|resnet", path.stem) else [])


@pytest.mark.parametrize("path", map(slow_if_large, FILES))
def test_every_file_runs(path, tmp_path, data_dir, no_pictures):
    small = ["rounds=1", "clients=2", "clients-per-round=2", "training.local-epochs=1", "engine=in-process"]
    settings = load(path, [*small, f"data-dir={data_dir}", f"run-dir={tmp_path / 'run'}"])
    out = run(settings)
    (row,) = out.read_rows()
    assert (row["replies"], row["failures"]) == (2, 0)


def test_fashion_mnist_has_published_settings():
    settings = load(CONF / "fashion-mnist-cnn.yaml")
    assert (settings.clients, settings.clients_per_round, settings.evaluate_every) == (100, 10, 10)
    assert settings.partition == Partition(name="dirichlet", alpha=0.1)
    assert settings.training == Training(lr=0.01, momentum=0.5, local_epochs=5, batch_size=50)
    assert settings.strategy.options == FedMROptions(unit="tensor")


PAPER = {
    "cifar10-cnn": ("cifar10", "cnn", 62_006),
    "cifar10-resnet20": ("cifar10", "resnet20-fedmr", 219_482),
    "cifar10-vgg16": ("cifar10", "vgg16", 33_646_666),
    "cifar100-cnn": ("cifar100-coarse", "cnn", 62_856),
    "cifar100-resnet20": ("cifar100-coarse", "resnet20-fedmr", 222_052),
    "cifar100-vgg16": ("cifar100-coarse", "vgg16", 33_687_636),
    "femnist-cnn": ("femnist", "cnn", 160_510),
    "femnist-resnet20": ("femnist", "resnet20-fedmr", 232_558),
    "femnist-vgg-fedmr": ("femnist", "vgg-fedmr", 8_024_958),
    "femnist-vgg16": ("femnist", "vgg16", None),
}


@pytest.mark.parametrize("name", PAPER)
def test_papers_files_have_published_settings(name):
    path = CONF / f"{name}.yaml"
    data, model, parameters = PAPER[name]
    settings = load(path, ["rounds=3", *(["partition.alpha=0.5"] if data != "femnist" else [])])
    assert (settings.data.name, settings.model.name) == (data, model)
    assert settings.training == Training(lr=0.01, momentum=0.5, local_epochs=5, batch_size=50)
    assert load(path).rounds == 2000
    assert settings.clients == 10 * settings.clients_per_round
    assert settings.partition.name == ("natural" if data == "femnist" else "dirichlet")
    first_stage = 100 if model.startswith("vgg") else 0
    assert settings.strategy.options == FedMROptions(unit="tensor", first_stage_rounds=first_stage)
    built = models.build(model, *datasets.form_of(settings.data, None, 0)[:2])
    count = models.parameter_count(built)
    assert f"{count:,} parameters" in path.read_text().splitlines()[0], "what the file says of itself is true"
    assert parameters in (count, None)


# As read in the sources that the files name: rounds, clients in a round, and the training.
SOURCES = {
    "femnist-leaf": (2000, 3, Training(lr=0.004, momentum=0, local_epochs=1, batch_size=10)),
    "shakespeare-leaf": (80, 10, Training(lr=0.8, momentum=0, local_epochs=1, batch_size=10)),
    "femnist-fedopt": (1500, 10, Training(lr=0.0316, momentum=0, local_epochs=1, batch_size=20)),
    "shakespeare-fedopt": (1200, 10, Training(lr=1, momentum=0, local_epochs=1, batch_size=4)),
    "cifar10-resnet18": (
        1000,
        10,
        Training(lr=0.1, momentum=0, weight_decay=1e-3, schedule="exponential", decay=0.998, local_epochs=5),
    ),
    "cifar100-resnet18": (
        301,
        10,
        Training(
            lr=0.1, momentum=0, weight_decay=1e-3, schedule="cosine", clip_norm=10, local_steps=50, augment=True
        ),
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_recipes_are_as_in_their_sources(name):
    settings = load(CONF / f"{name}.yaml")
    assert (settings.rounds, settings.clients_per_round, settings.training) == SOURCES[name]


def test_readme_names_existing_files():
    root = CONF.parent
    for text in (root / "README.md", root / "docs" / "guides" / "run.md"):
        named = re.findall(r"(?:conf|docs|benchmarks)/[\w./-]+\.(?:yaml|png|md|py)", text.read_text())
        missing = [name for name in named if not (root / name).exists()]
        assert named and not missing, f"{text.name} names {missing}"
