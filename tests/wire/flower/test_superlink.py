"""The SuperLink with models in memory: what it replaces in Flower is what Flower uses."""

from flwr.superlink import config_loader
from flwr.superlink.federation import NoOpFederationManager

from fedmr_flwr.deployment import superlink


def test_nodes_and_runs_are_kept_on_disk_and_models_in_memory(monkeypatch, tmp_path):
    monkeypatch.setitem(vars(config_loader), "ObjectStoreFactory", config_loader.ObjectStoreFactory)  # put back
    started = []
    monkeypatch.setattr(superlink, "flower_superlink", lambda: started.append(True))
    superlink.main()
    objects, states = config_loader.get_objectstore_linkstate_factories(
        str(tmp_path / "state.db"), NoOpFederationManager()
    )
    state = states.state()
    assert started == [True]
    assert type(objects.store()).__name__ == "InMemoryObjectStore"
    assert state.object_store is objects.store()
    assert (type(state).__name__, (tmp_path / "state.db").exists()) == ("SqlLinkState", True)
