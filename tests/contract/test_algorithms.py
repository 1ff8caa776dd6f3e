"""What every registered algorithm keeps; adding an algorithm adds its rows here by itself."""

import random

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord

from fedmr_flwr.algorithms.multi_model import MultiModel
from fedmr_flwr.config import registry
from fedmr_flwr.config.training import Training
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.data.base import Dataset, Examples, Normalisation
from fedmr_flwr.models.mlp import MLP
from fedmr_flwr.models.packing import layout_of
from fedmr_flwr.training.sgd import fit
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.roster import RosterGrid
from fedmr_flwr.wire.messages import vector_record

LAYOUT = Layout.of(
    {
        "a.w": np.zeros(5, np.float32),
        "b.n": np.zeros(1, np.int64),
        "classifier.weight": np.zeros((2, 3), np.float32),
        "classifier.bias": np.zeros(2, np.float32),
    }
)
CODEC = Codec(LAYOUT)
K, CLIENTS, ROUNDS = 4, 7, 4
OPTIONS = {"fedgen": {"generator_steps": 3}}  # of the many that it takes by default

pytestmark = pytest.mark.parametrize("name", sorted(registry.ALGORITHMS))


def new_strategy(name, **options):
    return registry.find(name)(clients_per_round=K, seed=3, layout=LAYOUT, **OPTIONS.get(name, {}), **options)


def start_model():
    rng = np.random.default_rng(1)
    return CODEC.encode(Packed(rng.normal(size=LAYOUT.size).astype(np.float32), np.zeros(1, np.int64)))


def with_vectors(content, message, client):
    """Add what the strategy asks for besides the model."""
    for name, length in message.content.config_records.get("returns", {}).items():
        content[name] = vector_record(np.arange(client, client + length, dtype=np.float32))
    return content


@pytest.fixture
def run_rounds(grid_of, answer):
    """Run a few rounds; return the final model, the messages of each round and the strategy."""

    def run(name, silent=(), shuffle=False, rounds=range(1, ROUNDS + 1), arrays=None, state=None):
        def reply(message, client):
            server_round = message.content["config"]["server-round"]
            if (server_round, client) in silent:
                raise RuntimeError("silent")
            old = CODEC.decode(message.content["arrays"])
            step = np.random.default_rng([server_round, client]).normal(size=LAYOUT.size).astype(np.float32)
            content = answer(CODEC.encode(Packed(old.floats - step, old.ints + 1)), examples=client + 1, loss=0.5)
            return with_vectors(content, message, client)

        inner = grid_of(reply, CLIENTS, stated=True)
        if shuffle:
            honest = inner.send_and_receive
            inner.send_and_receive = lambda messages, timeout=None: honest(messages)[::-1]
        grid = RosterGrid(inner, CLIENTS)
        strategy = new_strategy(name)
        if state is not None:
            strategy.restore(state)
        arrays, done = arrays or start_model(), []
        for number in rounds:
            before = {key: array.data for key, array in arrays.items()}
            messages = strategy.configure_train(number, arrays, ConfigRecord({"x": 1}), grid)
            replies = grid.send_and_receive(messages)
            received = [reply.content["arrays"]["floats"].data for reply in replies if reply.has_content()]
            combined, metrics = strategy.aggregate_train(number, replies)
            assert {key: array.data for key, array in arrays.items()} == before, "the global model is not changed"
            after = [reply.content["arrays"]["floats"].data for reply in replies if reply.has_content()]
            assert after == received, "replies are not changed"
            done.append((messages, metrics))
            arrays = combined
        return arrays, done, strategy

    return run


def test_one_fresh_message_per_slot(run_rounds, name):
    _, rounds, _ = run_rounds(name)
    for number, (messages, metrics) in enumerate(rounds, 1):
        assert isinstance(messages, list)
        assert len(messages) == K or (name == "clusamp" and 1 < len(messages) < K), "it may draw a client twice"
        assert len({message.metadata.dst_node_id for message in messages}) == len(messages)
        assert len({id(message.content) for message in messages}) == len(messages)
        assert all(message.content["config"]["server-round"] == number for message in messages)
        assert all(message.content["config"]["x"] == 1 for message in messages)
        assert metrics["loss"] == pytest.approx(0.5)


def test_seed_repeats_in_any_reply_order(run_rounds, name):
    first, second = run_rounds(name)[0], run_rounds(name, shuffle=True)[0]
    assert [array.data for array in first.values()] == [array.data for array in second.values()]


def test_survives_missing_slots(run_rounds, name):
    silent = {(2, client) for client in range(K - 1)}  # at least one of the K drawn answers
    arrays, _, _ = run_rounds(name, silent=silent)
    assert np.isfinite(CODEC.decode(arrays).floats).all()


@pytest.fixture
def exchange(grid_of, answer, name):
    """One round up to the replies; each client returns a model that is filled with its own number."""

    def reply(message, client):
        model = CODEC.encode(Packed(np.full(LAYOUT.size, client, np.float32), np.zeros(1, np.int64)))
        return with_vectors(answer(model, examples=client + 1, loss=client), message, client)

    def make():
        grid = RosterGrid(grid_of(reply, CLIENTS, stated=True), CLIENTS)
        strategy = new_strategy(name)
        return strategy, grid.send_and_receive(strategy.configure_train(1, start_model(), ConfigRecord(), grid))

    return make


def state_of(strategy, arrays):
    return arrays["floats"].data, {key: array.tobytes() for key, array in strategy.save().items()}


def test_replies_match_slots_in_any_order(exchange, name):
    results = []
    for order in (slice(None), slice(None, None, -1)):
        strategy, replies = exchange()
        arrays, _ = strategy.aggregate_train(1, replies[order])
        results.append(state_of(strategy, arrays))
    assert results[0] == results[1]


def test_missing_reply_moves_no_other(exchange, name):
    whole, replies = exchange()
    whole.aggregate_train(1, replies)
    part, replies = exchange()
    arrays, metrics = part.aggregate_train(1, replies[1:])
    assert np.isfinite(CODEC.decode(arrays).floats).all()
    assert 0 <= metrics["loss"] < CLIENTS
    if isinstance(part, MultiModel):
        for slot in range(1, K):
            np.testing.assert_array_equal(part.state.models[slot].floats, whole.state.models[slot].floats)
        np.testing.assert_array_equal(part.state.models[0].floats, CODEC.decode(start_model()).floats)


def test_no_replies_give_no_model(exchange, name):
    strategy, _ = exchange()
    assert strategy.aggregate_train(1, []) == (None, {"replies": 0, "failures": K})


def test_every_round_draws_other_clients(run_rounds, name):
    _, rounds, _ = run_rounds(name)
    drawn = [tuple(message.metadata.dst_node_id for message in messages) for messages, _ in rounds]
    # CluSamp prefers clients with many examples, so that the same four may come again.
    assert len(set(drawn)) >= len(drawn) - (name == "clusamp")


def test_global_generators_stay_untouched(run_rounds, name):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    run_rounds(name)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert before == after


def test_restored_state_continues_exactly(run_rounds, name):
    whole, _, strategy = run_rounds(name)
    assert all(isinstance(array, np.ndarray) for array in strategy.save().values())
    half, _, strategy = run_rounds(name, rounds=range(1, 3))
    state = {key: array.copy() for key, array in strategy.save().items()}
    rest, _, _ = run_rounds(name, rounds=range(3, ROUNDS + 1), arrays=half, state=state)
    assert [array.data for array in rest.values()] == [array.data for array in whole.values()]


@pytest.fixture
def grown(grid_of, answer, name):
    """Let all clients of a federation take part; return the bytes of the state, and what was said of it."""

    def run(clients, slots):
        def reply(message, client):
            return with_vectors(answer(message.content["arrays"], examples=client + 1), message, client)

        grid = RosterGrid(grid_of(reply, clients, stated=True), clients)
        options = {**OPTIONS.get(name, {}), "clients_per_round": slots, "layout": LAYOUT}
        strategy, arrays, seen = registry.find(name)(**options), start_model(), set()
        for number in range(1, 100):
            messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
            arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
            seen |= {message.metadata.dst_node_id for message in messages}
            if len(seen) == clients:
                break
        return sum(array.nbytes for array in strategy.save().values()), strategy.state_bytes(clients)

    return run


def test_growth_of_the_state_is_stated(grown, name):
    small, of_small = grown(clients=5, slots=3)
    for clients, slots in ((9, 3), (9, 6)):
        large, of_large = grown(clients, slots)
        assert large - small == of_large - of_small, (clients, slots)


def test_initial_state_can_be_restored(run_rounds, name):
    whole, _, _ = run_rounds(name)
    fresh = new_strategy(name)
    again, _, _ = run_rounds(name, state=fresh.save())
    assert [array.data for array in again.values()] == [array.data for array in whole.values()]


@pytest.fixture
def both_weightings(grid_of, answer, name):
    """Two rounds with either weighting of clients that have different models; return both global models."""

    def run(examples):
        def reply(message, client):
            old = CODEC.decode(message.content["arrays"])
            step = np.random.default_rng(client).normal(size=LAYOUT.size).astype(np.float32)
            content = answer(CODEC.encode(Packed(old.floats - step, old.ints)), examples=examples(client))
            return with_vectors(content, message, client)

        found = []
        for weighting in ("examples", "uniform"):
            grid = RosterGrid(grid_of(reply, CLIENTS, stated=examples), CLIENTS)
            strategy, arrays = new_strategy(name, weighting=weighting), start_model()
            for number in (1, 2):
                messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
                arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
            found.append(CODEC.decode(arrays).floats)
        return found

    return run


def test_weighting_counts_examples(both_weightings, name):
    by_examples, uniform = both_weightings(lambda client: 1 + 3 * client)
    assert np.abs(by_examples - uniform).max() > 0.01


def test_weightings_agree_on_equal_clients(both_weightings, name):
    by_examples, uniform = both_weightings(lambda client: 6)
    np.testing.assert_allclose(by_examples, uniform, rtol=1e-4, atol=1e-6)


def test_bytes_that_clients_keep_are_stated(name):
    rule, model = registry.find(name).Rule(), MLP((1, 2, 2), 3)
    examples = Examples(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2, 0]))
    data, rng = Dataset(examples, examples, 3, Normalisation((0.5,), (0.5,))), np.random.default_rng(0)
    kept = fit(model, data, examples, Training(local_epochs=1), rng, rule).outcome.kept
    assert sum(array.nbytes for array in kept.values()) == rule.kept_bytes(layout_of(model))
    assert bool(kept) == rule.keeps
