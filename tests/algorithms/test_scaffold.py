import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from torch import nn

from fedmr_flwr.algorithms.fedavg import FedAvg
from fedmr_flwr.algorithms.scaffold import CONTROL, Corrected, Scaffold
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.config.training import Training
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.server import rounds as loop
from fedmr_flwr.server.ledger import Ledger
from fedmr_flwr.training.rules import LocalRule
from fedmr_flwr.training.sgd import fit
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.roster import RosterGrid
from fedmr_flwr.wire.messages import vector_record, vectors

X = np.array([[1.0, 2.0], [-0.5, 1.0], [2.0, 0.25]], np.float32)
Y = np.array([0, 1, 1])
START = np.array([[0.5, -0.25], [0.1, 0.3]], np.float32)
SERVER = np.array([0.3, -0.2, 0.1, 0.4], np.float32)
OWN = np.array([-0.1, 0.25, 0.5, -0.3], np.float32)


def variates(server=SERVER, own=OWN):
    """What the server sent and what the client kept."""
    return {CONTROL: server}, {CONTROL: own}


def train(rule, training, received=None, kept=None, labels=Y):
    """Train a linear model on the three examples; return it and what the rule leaves behind."""
    model = nn.Linear(2, 2, bias=False)
    model.load_state_dict({"weight": torch.from_numpy(START)})
    examples = Examples(torch.from_numpy(X), torch.from_numpy(labels))
    data, rng = Dataset(examples, examples, 2, None), np.random.default_rng(0)
    done = fit(model, data, examples, training, rng, rule, received, kept)
    return model.weight.detach().numpy(), done.outcome


def gradient(w, x=X, y=Y):
    """The gradient of the mean cross-entropy of a linear model."""
    logits = x @ w.T
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return (shares - np.eye(2)[y]).T @ x / len(y)


def test_one_step_variate_is_the_gradient():
    _, outcome = train(Corrected(), Training(lr=0.1, momentum=0, local_epochs=1, batch_size=3), *variates())
    np.testing.assert_allclose(outcome.kept[CONTROL], gradient(START).reshape(-1), rtol=1e-4)
    np.testing.assert_allclose(outcome.returned[CONTROL], gradient(START).reshape(-1) - OWN, rtol=1e-4)


def test_several_steps_by_hand():
    training = Training(lr=0.1, momentum=0, local_epochs=4, batch_size=3)
    found, outcome = train(Corrected(), training, *variates())
    w = START.astype(np.float64)
    for _ in range(4):
        w = w - 0.1 * (gradient(w) - OWN.reshape(2, 2) + SERVER.reshape(2, 2))
    np.testing.assert_allclose(found, w, rtol=1e-5)
    own = OWN - SERVER + (START - w).reshape(-1) / (4 * 0.1)
    np.testing.assert_allclose(outcome.kept[CONTROL], own, rtol=1e-4)


def test_no_variates_is_plain_training():
    training = Training(lr=0.1, local_epochs=2, batch_size=2)
    np.testing.assert_array_equal(train(Corrected(), training)[0], train(LocalRule(), training)[0])


class Slope(Corrected):
    """A loss with the same gradient everywhere: 1, 2, 3, 4."""

    def forward(self, model, state, inputs, labels):
        return torch.zeros(len(labels), 2), (model.weight * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum()


@pytest.mark.parametrize("momentum", ["0", "0.5", "0.9", "0.9, Nesterov's"])
@pytest.mark.parametrize(("epochs", "batch_size"), [(1, 3), (3, 2), (4, 1)])
def test_variate_ignores_momentum(momentum, epochs, batch_size):
    """The last batch of an epoch may be smaller, and is a step all the same."""
    value, _, nesterov = momentum.partition(",")
    training = Training(
        lr=0.01, momentum=float(value), nesterov=bool(nesterov), local_epochs=epochs, batch_size=batch_size
    )
    _, outcome = train(Slope(), training, *variates())
    np.testing.assert_allclose(outcome.kept[CONTROL], [1, 2, 3, 4], rtol=1e-4)


class Scalar(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([float(value)]))


# Two clients: a / 2 (w - b)^2 each.
CURVES = np.array([[1.0, 0.0], [4.0, 3.0]])
LAYOUT = Layout.of({"w": np.zeros(1, np.float32)})
CODEC = Codec(LAYOUT)
STEPS, LR = 10, 0.1


def train_rounds(grid_of, answer, strategy, rule, rounds, lost_in=None):
    """Run rounds of many local steps on the two quadratic clients; return the global model."""
    kept = [{}, {}]

    class Quadratic(rule):
        def forward(self, model, state, inputs, labels):
            a, b = inputs[0]
            return torch.zeros(len(labels), 2), a / 2 * (model.w - b).square().sum()

    def reply(message, client):
        model, made = Scalar(CODEC.decode(message.content["arrays"]).floats[0]), Quadratic()
        config = message.content["config"]
        lost = client == 0 and config["server-round"] == lost_in
        received = vectors(message.content, made.exchanges)
        found = kept[client] if config["last-round"] and not lost else {}
        examples = Examples(torch.tensor(CURVES[client : client + 1], dtype=torch.float32), torch.tensor([0]))
        training = Training(lr=LR, momentum=0, local_epochs=STEPS)
        data, rng = Dataset(examples, examples, 2, None), np.random.default_rng(0)
        done = fit(model, data, examples, training, rng, made, received, found)
        kept[client] = done.outcome.kept
        content = answer(
            CODEC.encode(Parts([model.w.detach().numpy()], [])),
            examples=client + 1,
            **({"lost-state": 1} if lost else {}),
        )
        for name, values in done.outcome.returned.items():
            content[name] = vector_record(values)
        return content

    grid = RosterGrid(grid_of(reply, 2, stated=True), 2)
    arrays = CODEC.encode(Parts([np.array([10.0], np.float32)], []))
    settings = Settings(rounds=rounds, clients=2, clients_per_round=2)
    arrays = loop.run(settings, strategy, grid, Ledger(2), arrays, ConfigRecord(), lambda *_: {}, lambda *_: None)
    return CODEC.decode(arrays).floats[0]


def test_reaches_optimum_unlike_fedavg(grid_of, answer):
    a, b = CURVES.T
    optimum = (a * b).sum() / a.sum()
    reach = 1 - (1 - LR * a) ** STEPS  # how far a client goes towards its own optimum in a round
    biased = (reach * b).sum() / reach.sum()
    assert abs(optimum - biased) > 0.2
    options = {"clients_per_round": 2, "layout": LAYOUT}
    plain = train_rounds(grid_of, answer, FedAvg(**options, weighting="uniform"), LocalRule, 20)
    assert plain == pytest.approx(biased, rel=1e-4)
    assert train_rounds(grid_of, answer, Scaffold(**options), Corrected, 60) == pytest.approx(optimum, rel=1e-4)


def test_reaches_the_optimum_by_examples(grid_of, answer):
    a, b = CURVES.T
    shares = np.array([1, 2])  # the clients' numbers of examples
    optimum = (shares * a * b).sum() / (shares * a).sum()
    strategy = Scaffold(clients_per_round=2, layout=LAYOUT, weighting="examples")
    assert train_rounds(grid_of, answer, strategy, Corrected, 60) == pytest.approx(optimum, rel=1e-4)
    assert abs(optimum - (a * b).sum() / a.sum()) > 0.1, "not the one of equal clients"


def test_unknown_examples_are_refused(grid_of, answer):
    grid = RosterGrid(grid_of(lambda message, client: answer(message.content["arrays"]), 2), 2)
    arrays = CODEC.encode(Parts([np.zeros(1, np.float32)], []))
    with pytest.raises(ConfigError, match="needs the number of examples of every client.*or use weighting 'uniform'"):
        strategy = Scaffold(clients_per_round=2, layout=LAYOUT, weighting="examples")
        strategy.configure_train(1, arrays, ConfigRecord(), grid)
    Scaffold(clients_per_round=2, layout=LAYOUT).configure_train(1, arrays, ConfigRecord(), grid)


@pytest.mark.slow
def test_reaches_optimum_after_lost_variate(grid_of, answer):
    a, b = CURVES.T
    strategy = Scaffold(clients_per_round=2, layout=LAYOUT)
    found = train_rounds(grid_of, answer, strategy, Corrected, 80, lost_in=11)
    assert found == pytest.approx((a * b).sum() / a.sum(), rel=1e-4)


@pytest.mark.parametrize("server_lr", [1.0, 0.5, 2.0])
def test_server_update_by_hand(grid_of, answer, server_lr):
    layout = Layout.of({"w": np.zeros(2, np.float32), "bn.running_mean": np.zeros(1, np.float32)})
    codec = Codec(layout)
    models = np.array([[1, 2, 3], [2, 4, 6], [0, 0, 0], [4, 0, 9], [6, 2, 1]], np.float32)
    changes = np.array([[1, -1], [2, 0], [0, 3], [4, 4], [-5, 1]], np.float32)

    def reply(message, client):
        if client == 4:
            raise RuntimeError("lost")
        content = answer(codec.encode(Parts([models[client]], [])), examples=10 * client + 1)
        content[CONTROL] = vector_record(changes[client])
        return content

    grid = RosterGrid(grid_of(reply, 5), 5)
    strategy = Scaffold(clients_per_round=3, seed=0, layout=layout, server_lr=server_lr)
    arrays, start, control = codec.encode(Parts([np.ones(3, np.float32)], [])), np.ones(3), np.zeros(2)
    for number in (1, 2):
        np.testing.assert_allclose(strategy.sends()[CONTROL], control)
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        assert all(vectors(m.content, [CONTROL])[CONTROL].tolist() == control.tolist() for m in messages)
        judged = strategy.judge(grid.send_and_receive(messages))
        arrays, _ = strategy.aggregate(number, judged)
        good = [*judged.good]
        mean = models[good].mean(0)
        expected = np.append(start[:2] + server_lr * (mean[:2] - start[:2]), mean[2])  # a statistic is averaged
        np.testing.assert_allclose(codec.decode(arrays).floats, expected, rtol=1e-6)
        control = control + changes[good].sum(0) / 5
        start = expected
    assert 4 not in good and len(good) <= 3


@pytest.mark.parametrize("length", [99, 101, 1e30])
@pytest.mark.parametrize("guard", [None, 10])
def test_guard_refuses_a_variate_that_is_far_too_long(grid_of, answer, guard, length):
    layout = Layout.of({"w": np.zeros(2, np.float32)})
    codec, changes = Codec(layout), np.array([[1, 0], [0, 1], [-1, 0], [0, length]], np.float32)

    def reply(message, client):
        content = answer(message.content["arrays"])
        content[CONTROL] = vector_record(changes[client])
        return content

    grid = RosterGrid(grid_of(reply, 4), 4)
    strategy = Scaffold(clients_per_round=4, layout=layout, guard=guard)
    arrays = codec.encode(Parts([np.ones(2, np.float32)], []))
    judged = strategy.judge(grid.send_and_receive(strategy.configure_train(1, arrays, ConfigRecord(), grid)))
    assert [failure.client for failure in judged.failures] == ([3] if guard and length > 100 else [])


def test_round_equals_plain_numpy(grid_of, answer):
    """Two clients, two local steps, variates that are not zero any more: all of the second round."""
    labels, layout = (Y, np.array([1, 0, 0])), Layout.of({"weight": np.zeros((2, 2), np.float32)})
    codec, kept = Codec(layout), [{}, {}]
    training = Training(lr=0.2, momentum=0, local_epochs=2, batch_size=3)

    def reply(message, client):
        received = vectors(message.content, [CONTROL])
        model = nn.Linear(2, 2, bias=False)
        weight = codec.decode(message.content["arrays"]).floats.copy().reshape(2, 2)
        model.load_state_dict({"weight": torch.from_numpy(weight)})
        examples = Examples(torch.from_numpy(X), torch.from_numpy(labels[client]))
        data, rng = Dataset(examples, examples, 2, None), np.random.default_rng(0)
        done = fit(model, data, examples, training, rng, Corrected(), received, kept[client])
        kept[client] = done.outcome.kept
        content = answer(codec.encode(Parts([model.weight.detach().numpy().reshape(-1)], [])))
        content[CONTROL] = vector_record(done.outcome.returned[CONTROL])
        return content

    grid = RosterGrid(grid_of(reply, 2), 2)
    strategy, arrays = Scaffold(clients_per_round=2, layout=layout), codec.encode(Parts([START.reshape(-1)], []))
    for number in (1, 2):
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))

    x, c, own = START.astype(np.float64), np.zeros((2, 2)), [np.zeros((2, 2)), np.zeros((2, 2))]
    for _ in range(2):
        ends, changes = [], []
        for client in range(2):
            y = x.copy()
            for _ in range(2):
                y -= 0.2 * (gradient(y, y=labels[client]) - own[client] + c)
            new = own[client] - c + (x - y) / (2 * 0.2)
            changes.append(new - own[client])
            own[client] = new
            ends.append(y)
        x, c = np.mean(ends, axis=0), c + np.mean(changes, axis=0)
    np.testing.assert_allclose(codec.decode(arrays).floats.reshape(2, 2), x, rtol=1e-5)
    np.testing.assert_allclose(strategy.sends()[CONTROL].reshape(2, 2), c, rtol=1e-4)
    np.testing.assert_allclose(c, np.mean(own, axis=0), err_msg="the server's variate is the mean of all clients'")


def test_variate_includes_weight_decay():
    """The decay's gradient is that of a regularised loss, at the first step's weights."""
    training = Training(lr=0.1, momentum=0, local_steps=1, batch_size=3, weight_decay=0.5)
    _, outcome = train(Corrected(), training, *variates())
    np.testing.assert_allclose(outcome.kept[CONTROL], (gradient(START) + 0.5 * START).reshape(-1), rtol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("optimizer=adam", "training.optimizer=adam: its variates are sums of SGD's steps; use sgd"),
        ("clip-norm=1", "training.clip-norm: its variates would be means of clipped gradients; leave it out"),
    ],
)
def test_refuses_what_is_not_sgd(toy, wrong, words):
    with pytest.raises(ConfigError, match=f"clients of 'scaffold' do not work with {words}"):
        toy("strategy.name=scaffold", f"training.{wrong}")
