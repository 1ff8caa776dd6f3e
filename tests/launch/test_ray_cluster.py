import re
from pathlib import Path

import pytest

from fedmr_flwr.config.loading import load
from fedmr_flwr.errors import ConfigError, FedmrError
from fedmr_flwr.launch import ray
from fedmr_flwr.launch import ray_cluster as cluster
from fedmr_flwr.wire.flower.environment import simulation_environment

QUICKSTART = Path(__file__).parents[2] / "conf" / "quickstart.yaml"


def settings(tmp_path, *overrides):
    return load(QUICKSTART, [f"run-dir={tmp_path / 'run'}", *overrides])


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nonsense", "ray.address = 'nonsense': write host:port"),
        ("ray://127.0.0.1:10001", "write host:port"),
        ("127.0.0.1:9", "the Ray cluster at '127.0.0.1:9' does not reply"),
    ],
)
def test_wrong_address_is_refused(tmp_path, address, words):
    with pytest.raises(FedmrError, match=words) as refused:
        ray.run(settings(tmp_path, f"ray.address={address}"), None)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_default_address_is_local(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster.address_of(settings(tmp_path)) == "local"


def test_own_ray_admits_only_processes_with_its_token(tmp_path):
    one, other = (simulation_environment(tmp_path, tmp_path, "local", (1, 2)) for _ in range(2))
    assert one["RAY_AUTH_MODE"] == other["RAY_AUTH_MODE"] == "token"
    assert re.fullmatch("[0-9a-f]{64}", one["RAY_AUTH_TOKEN"]) and one["RAY_AUTH_TOKEN"] != other["RAY_AUTH_TOKEN"]
    joined = simulation_environment(tmp_path, tmp_path, "10.0.0.1:6379", (1, 2))
    assert "RAY_AUTH_TOKEN" not in joined, "a cluster has its own"


def test_settings_override_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster.address_of(settings(tmp_path)) == "10.0.0.1:6379"
    assert cluster.address_of(settings(tmp_path, "ray.address=auto")) == "auto"


def test_wrong_environment_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265")
    with pytest.raises(ConfigError, match="RAY_ADDRESS = 'http://10.0.0.1:8265': write host:port"):
        cluster.address_of(settings(tmp_path))
