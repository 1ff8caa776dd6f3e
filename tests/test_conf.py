"""Every file in conf/ is a run that works."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from fedmr_flwr import config, engines, server
from fedmr_flwr.runs.display import Display

CONF = Path(__file__).parent.parent / "conf"
FILES = sorted(CONF.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_round_with_three_clients(path, tmp_path, write_fashion_mnist):
    write_fashion_mnist(tmp_path / "data", packed=True, train=200)
    small = ["rounds=1", "clients=3", "clients-per-round=3", "training.local-epochs=1", "engine=in-process"]
    settings = config.load(path, [*small, f"data-dir={tmp_path / 'data'}", f"run-dir={tmp_path / 'run'}"])
    with Display(1, Console(file=io.StringIO())) as display:
        out = server.run(settings, engines.grid_of(settings), display)
    (row,) = out.read_rows()
    assert (row["replies"], row["failures"]) == (3, 0)


def test_fashion_mnist_is_in_the_setting_of_the_published_code():
    settings = config.load(CONF / "fashion-mnist-cnn.yaml")
    assert (settings.clients, settings.clients_per_round, settings.evaluate_every) == (100, 10, 10)
    assert settings.partition == config.Partition(name="dirichlet", alpha=0.1)
    assert settings.training == config.Training(lr=0.01, momentum=0.5, local_epochs=5, batch_size=50)
    assert settings.strategy.model_extra == {"unit": "tensor"}


def test_the_readme_names_only_files_that_are_there():
    import re

    root = CONF.parent
    for text in (root / "README.md", root / "docs" / "running.md"):
        named = re.findall(r"(?:conf|docs|benchmarks)/[\w./-]+\.(?:yaml|png|md|py)", text.read_text())
        missing = [name for name in named if not (root / name).exists()]
        assert named and not missing, f"{text.name} names {missing}"
