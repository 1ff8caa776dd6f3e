"""The SuperLink with models in memory: what is replaced in Flower is what Flower uses."""

import pytest
from flwr.superlink import config_loader
from flwr.superlink.federation import NoOpFederationManager

from fedmr_flwr.wire.flower import superlink


@pytest.fixture
def stores(monkeypatch, tmp_path):
    """The stores of objects and of state that Flower makes for a database, with the replacement."""
    monkeypatch.setattr(config_loader, "ObjectStoreFactory", config_loader.ObjectStoreFactory)  # put back at the end
    superlink.apply()
    objects, states = config_loader.get_objectstore_linkstate_factories(
        str(tmp_path / "state.db"), NoOpFederationManager()
    )
    return objects.store(), states.state()


def test_models_are_kept_in_memory(stores):
    objects, state = stores
    assert type(objects).__name__ == "InMemoryObjectStore"
    assert state.object_store is objects


def test_nodes_and_runs_are_kept_on_disk(stores, tmp_path):
    assert type(stores[1]).__name__ == "SqlLinkState"
    assert (tmp_path / "state.db").exists()


def test_superlink_runs_after_apply(monkeypatch):
    called = []
    monkeypatch.setattr(superlink, "apply", lambda: called.append("apply"))
    monkeypatch.setattr(superlink, "flower_superlink", lambda: called.append("run"))
    superlink.main()
    assert called == ["apply", "run"]
