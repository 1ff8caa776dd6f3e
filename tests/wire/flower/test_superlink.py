"""The SuperLink with models in memory: what is replaced in Flower is what Flower uses."""

import ast
import subprocess
import sys

import pytest
from flwr.common.constant import ACCESS_TOKEN_KEY, REFRESH_TOKEN_KEY
from flwr.superlink import config_loader
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.federation import NoOpFederationManager

from fedmr_flwr.wire.flower import access, superlink


def apply(monkeypatch):
    for name in ("ObjectStoreFactory", "get_control_authn_plugins"):
        monkeypatch.setattr(config_loader, name, getattr(config_loader, name))  # put back at the end
    monkeypatch.setenv("FLWR_OIDC_ENABLED", "0")
    superlink.apply()


@pytest.fixture
def stores(monkeypatch, tmp_path):
    """The stores of objects and of state that Flower makes for a database, with the replacement."""
    apply(monkeypatch)
    objects, states = config_loader.get_objectstore_linkstate_factories(
        str(tmp_path / "state.db"), NoOpFederationManager()
    )
    return objects.store(), states.state()


def test_models_are_kept_in_memory(stores):
    objects, state = stores
    assert type(objects).__name__ == "InMemoryObjectStore"
    assert state.object_store is objects


@pytest.mark.slow
def test_nodes_and_runs_are_kept_on_disk(stores, tmp_path):
    assert type(stores[1]).__name__ == "SqlLinkState"
    assert (tmp_path / "state.db").exists()


def test_commands_need_the_token(monkeypatch, tmp_path):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    access.create(tmp_path, "127.0.0.1:8000")
    apply(monkeypatch)
    plugin = config_loader.load_control_authn_plugin()
    (token,) = access.tokens(tmp_path)
    valid, account = plugin.validate_tokens_in_metadata([(ACCESS_TOKEN_KEY, token)])
    assert (valid, account.flwr_aid) == (True, NoOpControlAuthnPlugin().validate_tokens_in_metadata([])[1].flwr_aid)
    for wrong in ([], [(ACCESS_TOKEN_KEY, "")], [(ACCESS_TOKEN_KEY, token[:-1])], [(ACCESS_TOKEN_KEY, "\xe9")]):
        assert plugin.validate_tokens_in_metadata(wrong) == (False, None)
    assert plugin.refresh_tokens([(REFRESH_TOKEN_KEY, token)]) == (None, None)


def test_without_a_file_no_token_is_valid(monkeypatch, tmp_path):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    assert superlink.TokenPlugin().validate_tokens_in_metadata([(ACCESS_TOKEN_KEY, "")]) == (False, None)


@pytest.mark.slow
def test_flowers_commands_send_the_token(monkeypatch, tmp_path):
    access.create(tmp_path, "127.0.0.1:8000")
    code = (
        "from flwr.cli.utils import load_cli_auth_plugin_from_connection as load\n"
        "plugin = load('127.0.0.1:8000'); plugin.load_tokens(); print(dict(plugin.write_tokens_to_metadata([])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"FLWR_HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert ast.literal_eval(done.stdout)[ACCESS_TOKEN_KEY] == access.tokens(tmp_path)[0]


def test_superlink_runs_after_apply(monkeypatch):
    called = []
    monkeypatch.setattr(superlink, "apply", lambda: called.append("apply"))
    monkeypatch.setattr(superlink, "flower_superlink", lambda: called.append("run"))
    superlink.main()
    assert called == ["apply", "run"]
