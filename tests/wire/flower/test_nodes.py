"""The order of Flower's nodes."""

import pytest
from flwr.server.superlink.fleet.vce import vce_api
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

from fedmr_flwr.wire.flower.nodes import in_order_of_registration
from fedmr_flwr.wire.flower.tasks import Run
from fedmr_flwr.wire.grids.roster import await_nodes


@pytest.fixture
def factory():
    return LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())


@pytest.fixture
def simulation(factory):
    """The Grid of a simulation without nodes."""
    run = Run.create_empty(run_id=1)
    run.federation_id = NOOP_FEDERATION_ID
    factory.state().run_ids[1] = RunRecord(run=run)
    grid = InMemoryGrid(factory)
    grid._run = run  # without the tasks of a real one
    return grid


def test_nodes_are_known_in_the_order_of_their_partitions(factory, simulation):
    partitions = vce_api._register_nodes(40, factory)
    nodes = in_order_of_registration(simulation, simulation.get_node_ids())
    assert [partitions[node] for node in nodes] == list(range(40))


def test_a_simulation_is_awaited_to_its_last_node(factory, simulation, monkeypatch):
    partitions = vce_api._register_nodes(2, factory)
    later = iter([3, 1])

    def start_some(seconds):
        partitions.update(vce_api._register_nodes(next(later, 0), factory))

    monkeypatch.setattr("fedmr_flwr.wire.grids.roster.time.sleep", start_some)
    assert len(await_nodes(simulation, 2, first=True)) == 6
    assert await_nodes(simulation, 2) == list(partitions)
