import numpy as np
import pytest
import torch
from torch import nn

from fedmr_flwr.algorithms.fedprox import Prox, ProxOptions
from fedmr_flwr.config.training import Training
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.training.rules import LocalRule, Task
from fedmr_flwr.training.sgd import fit

X = np.array([[1.0, 2.0], [-0.5, 1.0], [2.0, 0.25]], np.float32)
Y = np.array([0, 1, 1])
START = np.array([[0.5, -0.25], [0.1, 0.3]], np.float32)


def trained(rule, epochs=4, momentum=0.5, lr=0.5):
    """Train a linear model on three examples in one batch."""
    model = nn.Linear(2, 2, bias=False)
    model.load_state_dict({"weight": torch.from_numpy(START)})
    examples = Examples(torch.from_numpy(X), torch.from_numpy(Y))
    training = Training(lr=lr, momentum=momentum, local_epochs=epochs, batch_size=3)
    fit(model, Dataset(examples, examples, 2, None), examples, training, np.random.default_rng(0), rule)
    return model.weight.detach().numpy()


def by_hand(mu, epochs=4, momentum=0.5):
    """The same in NumPy: softmax regression, gradient of the mean cross-entropy plus mu (w - w0)."""
    w, velocity = START.astype(np.float64), np.zeros((2, 2))
    for _ in range(epochs):
        logits = X @ w.T
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        gradient = (shares - np.eye(2)[Y]).T @ X / len(Y) + mu * (w - START)
        velocity = momentum * velocity + gradient
        w = w - 0.5 * velocity
    return w


@pytest.mark.parametrize("mu", [0.0, 0.3, 2.0])
def test_steps_by_hand(mu):
    np.testing.assert_allclose(trained(Prox(ProxOptions(mu=mu))), by_hand(mu), rtol=1e-5)
    assert not np.allclose(by_hand(2.0), by_hand(0.0), rtol=0.01), "the term matters in this problem"


def test_zero_mu_is_plain_training():
    np.testing.assert_array_equal(trained(Prox(ProxOptions(mu=0))), trained(LocalRule()))


def test_large_mu_stays_near_the_start():
    near, far = (np.abs(trained(Prox(ProxOptions(mu=mu)), 200, 0.0, 0.1) - START).max() for mu in (5.0, 0.0))
    assert near < far / 3


def test_frozen_tensors_do_not_change():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].bias.requires_grad_(False)
    rule = Prox(ProxOptions(mu=1))
    state = rule.begin(model, Task(torch.from_numpy(Y), Training(), np.random.default_rng(0)))
    model(torch.from_numpy(X)).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rule.adjust(model, state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
