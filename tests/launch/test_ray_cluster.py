from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.superlink.grid import InMemoryGrid

from fedmr_flwr import config
from fedmr_flwr.errors import ConfigError, FedmrError
from fedmr_flwr.launch import ray, server_app
from fedmr_flwr.launch import ray_cluster as cluster

QUICKSTART = Path(__file__).parents[2] / "conf" / "quickstart.yaml"


def settings(tmp_path, *overrides):
    return config.load(QUICKSTART, [f"run-dir={tmp_path / 'run'}", *overrides])


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nonsense", "ray.address = 'nonsense': write host:port"),
        ("ray://127.0.0.1:10001", "write host:port"),
        ("127.0.0.1:9", "the Ray cluster at '127.0.0.1:9' does not answer"),
    ],
)
def test_an_address_without_a_cluster_is_refused_before_anything_is_written(tmp_path, address, said):
    with pytest.raises(FedmrError, match=said) as refused:
        ray.run(settings(tmp_path, f"ray.address={address}"), None)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_the_environment_names_a_cluster_too_and_without_it_none_is_joined(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster.address_of(settings(tmp_path)) == "local"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster.address_of(settings(tmp_path)) == "10.0.0.1:6379"
    assert cluster.address_of(settings(tmp_path, "ray.address=auto")) == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265")
    with pytest.raises(ConfigError, match="RAY_ADDRESS = 'http://10.0.0.1:8265': write host:port"):
        cluster.address_of(settings(tmp_path))


def test_flwr_run_refuses_an_address_that_comes_too_late(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    asked = f"ray.address=10.0.0.1:6379 run-dir={tmp_path / 'run'}"
    context = SimpleNamespace(run_config={"conf": str(QUICKSTART), "set": asked})
    with pytest.raises(ConfigError, match="export RAY_ADDRESS=10.0.0.1:6379 before the SuperLink starts"):
        server_app.main(object.__new__(InMemoryGrid), context)
    assert not (tmp_path / "run").exists()
