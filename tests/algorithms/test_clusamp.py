from collections import Counter

import numpy as np
import pytest
from flwr.app import ConfigRecord

from fedmr_flwr.algorithms.clusamp import CluSamp, distributions
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.roster import RosterGrid

LAYOUT = Layout.of({"w": np.zeros(4, np.float32), "bn.running_var": np.zeros(1, np.float32)})
CODEC = Codec(LAYOUT)
START = CODEC.encode(Parts([np.zeros(5, np.float32)], []))


def apart(points):
    return np.abs(np.subtract.outer(points, points)).astype(float)


@pytest.mark.parametrize("seed", range(30))
def test_expected_draws_follow_examples(seed):
    """In whole numbers: nothing is sampled here."""
    rng = np.random.default_rng(seed)
    clients, draws = int(rng.integers(1, 30)), int(rng.integers(1, 12))
    examples = rng.integers(1, rng.choice([3, 100, 3000]), clients)
    if seed % 3 == 0:
        examples[rng.integers(clients)] *= 50  # one that fills distributions alone
    found = distributions(examples, apart(rng.normal(size=clients)), draws)
    assert found.shape == (draws, clients)
    assert (found >= 0).all()
    np.testing.assert_array_equal(found.sum(1), examples.sum())
    np.testing.assert_array_equal(found.sum(0), draws * examples)


def test_near_clients_share_a_distribution():
    found = distributions(np.array([5, 5, 5, 5]), apart([0.0, 9.0, 0.1, 9.1]), 2)
    assert sorted(map(tuple, found)) == [(0, 10, 0, 10), (10, 0, 10, 0)]


def test_large_client_has_its_distribution():
    # 8 examples, 2 draws: 12, 2 and 2 units into distributions of 8.
    np.testing.assert_array_equal(distributions(np.array([6, 1, 1]), np.zeros((3, 3)), 2), [[8, 0, 0], [4, 2, 2]])


def test_too_large_clusters_are_split():
    # Three draws of 12 units each. The near ones 0, 1, 2 have 9 each, so that no two fit together; 3, 4, 5 have 9.
    found = distributions(np.array([3, 3, 3, 1, 1, 1]), apart([0.0, 0.1, 0.2, 5.0, 9.0, 14.0]), 3)
    np.testing.assert_array_equal(found[0], [0, 0, 3, 3, 3, 3])
    assert sorted(map(tuple, found[1:])) == [(0, 9, 3, 0, 0, 0), (9, 0, 3, 0, 0, 0)]


def test_largest_clusters_come_first():
    # 12 examples, 2 draws: 10, 8, 4 and 2 units, and of the four nobody fits to the one that is nearest.
    found = distributions(np.array([5, 4, 2, 1]), apart([0.0, 100.0, 1000.0, 5000.0]), 2)
    np.testing.assert_array_equal(found, [[10, 0, 2, 0], [0, 8, 2, 2]])


@pytest.fixture
def grid(grid_of, answer):
    def reply(message, client):
        if client == 3:
            raise RuntimeError("lost")
        number = message.content["config"]["server-round"]
        old = CODEC.decode(message.content["arrays"]).floats
        step = np.random.default_rng([number, client]).normal(size=5).astype(np.float32)
        return answer(CODEC.encode(Parts([old + step], [])), examples=client + 1)

    return RosterGrid(grid_of(reply, 8, stated=True), 8)


@pytest.fixture
def given(monkeypatch):
    """What the clients' distributions were made of, draw by draw."""
    found = []

    def look(*arguments):
        found.append([np.copy(argument) for argument in arguments])
        return distributions(*arguments)

    monkeypatch.setattr("fedmr_flwr.algorithms.clusamp.distributions", look)
    return found


def test_distances_use_latest_updates(grid, given):
    strategy, arrays = CluSamp(clients_per_round=4, seed=1, layout=LAYOUT), START
    latest, expected = np.zeros((8, 4)), [np.zeros((8, 8))]
    for number in range(1, 9):
        before = CODEC.decode(arrays).floats
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        replies = grid.send_and_receive(messages)
        for reply in replies:
            if reply.has_content():
                client = grid.client_of(reply.metadata.src_node_id)
                latest[client] = (CODEC.decode(reply.content["arrays"]).floats - before)[:4]
        arrays, _ = strategy.aggregate_train(number, replies)
        expected.append(np.abs(latest[:, None] - latest).sum(2))
    assert np.count_nonzero(latest.any(axis=1)) > 4, "many clients took part"
    assert not latest[3].any()
    other = CluSamp(clients_per_round=4, seed=1, layout=LAYOUT)
    other.restore(strategy.save())
    for server in (strategy, other):
        server.configure_train(9, arrays, ConfigRecord(), grid)
    for (_, found, _), wanted in zip(given, [*expected, expected[-1]], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_draws_follow_examples(grid, given):
    CluSamp(clients_per_round=4, layout=LAYOUT).configure_train(1, START, ConfigRecord(), grid)
    ((examples, _, draws),) = given
    assert (examples.tolist(), int(draws)) == ([*range(1, 9)], 4)


def test_uniform_draws_ignore_examples(grid, given):
    strategy = CluSamp(clients_per_round=4, layout=LAYOUT, weighting="uniform")
    strategy.configure_train(1, START, ConfigRecord(), grid)
    assert given[0][0].tolist() == [1] * 8


def test_uniform_draws_need_no_examples(grid_of, answer):
    inner = grid_of(lambda message, client: None, 8, numbered=False)
    strategy = CluSamp(clients_per_round=4, layout=LAYOUT, weighting="uniform")
    assert len(strategy.configure_train(1, START, ConfigRecord(), RosterGrid(inner))) <= 4


def test_client_drawn_twice_counts_twice(grid, monkeypatch):
    rows = np.zeros((4, 8), np.int64)
    rows[[0, 1, 2, 3], [5, 2, 5, 3]] = 36  # 5 twice; 3 does not reply
    monkeypatch.setattr("fedmr_flwr.algorithms.clusamp.distributions", lambda *_: rows)
    strategy = CluSamp(clients_per_round=4, layout=LAYOUT)
    exchange = grid.exchange(strategy.configure_train(1, START, ConfigRecord(), grid))
    replies = exchange.replies
    assert Counter(exchange.clients) == {5: 1, 2: 1, 3: 1}
    models = {
        client: CODEC.decode(reply.content["arrays"]).floats
        for client, reply in zip(exchange.clients, replies, strict=True)
        if reply.has_content()
    }
    arrays, _ = strategy.aggregate_train(1, replies[::-1])
    np.testing.assert_allclose(CODEC.decode(arrays).floats, (2 * models[5] + models[2]) / 3, rtol=1e-6)


def test_needs_example_counts(grid_of, answer):
    inner = grid_of(lambda message, client: None, 8, numbered=False)
    for grid in (inner, RosterGrid(inner)):
        with pytest.raises(ConfigError, match="weighting 'examples' of this strategy needs the number of examples"):
            CluSamp(clients_per_round=4, layout=LAYOUT).configure_train(1, START, ConfigRecord(), grid)
