import numpy as np
import pytest
import torch
from torch import nn

from fedmr_flwr.algorithms.fedasam import ASAM, ASAMOptions
from fedmr_flwr.config.training import Training
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.training.rules import LocalRule
from fedmr_flwr.training.sgd import fit


class Quadratic(LocalRule):
    """The loss 3 a^2 + b^2 / 2 + 2 c of a weight [a, b] and a bias c, beside a constant cross-entropy."""

    def forward(self, model, state, inputs, labels):
        a, b = model.weight[0]
        return torch.zeros(len(labels), 2), 3 * a**2 + b**2 / 2 + 2 * model.bias[0]


class QuadraticASAM(ASAM):
    forward = Quadratic.forward


def train(model, rule, inputs, labels):
    """Take one step."""
    examples = Examples(inputs, labels)
    training = Training(lr=0.1, momentum=0, local_epochs=1, batch_size=len(labels))
    return fit(model, Dataset(examples, examples, 2, None), examples, training, np.random.default_rng(0), rule)


def step(rule, weight=(0.5, -2.0), bias=1.0):
    model = nn.Linear(2, 1)
    model.load_state_dict({"weight": torch.tensor([weight]), "bias": torch.tensor([bias])})
    train(model, rule, torch.zeros(1, 2), torch.tensor([0]))
    return np.array([*model.weight.detach()[0].tolist(), model.bias.item()])


@pytest.mark.parametrize(("rho", "eta"), [(0.1, 0.0), (0.5, 0.0), (0.5, 0.2)])
def test_step_by_hand(rho, eta):
    a, b, c = 0.5, -2.0, 1.0
    scales = np.array([abs(a) + eta, abs(b) + eta, 1.0])  # a bias is not scaled
    gradient = np.array([6 * a, b, 2.0])
    climb = rho * scales**2 * gradient / np.linalg.norm(scales * gradient)
    there = np.array([6 * (a + climb[0]), b + climb[1], 2.0])
    found = step(QuadraticASAM(ASAMOptions(rho=rho, eta=eta)))
    np.testing.assert_allclose(found, np.array([a, b, c]) - 0.1 * there, rtol=1e-6)


def test_reports_the_unperturbed_loss():
    inputs, labels = torch.tensor([[1.0, -0.5], [2.0, 1.0]]), torch.tensor([0, 1])
    losses = [train(model_of_ones(), rule, inputs, labels).loss for rule in (LocalRule(), ASAM(ASAMOptions(rho=0.5)))]
    assert losses[0] == losses[1]


def model_of_ones():
    model = nn.Linear(2, 2)
    model.load_state_dict({"weight": torch.eye(2), "bias": torch.ones(2)})
    return model


def test_scales_lstm_weights():
    model = nn.LSTM(2, 1)
    before = {name: own.detach().clone() for name, own in model.named_parameters()}
    for own in model.parameters():
        own.grad = torch.ones_like(own)
    ASAM(ASAMOptions(rho=0.5))._climb(model)
    moved = {name: (own.detach() - before[name]) / 0.5 for name, own in model.named_parameters()}
    length = sum(
        (before[name].square() if name.startswith("weight") else torch.ones(4)).sum() for name in before
    ).sqrt()
    for name, own in moved.items():
        square = before[name].square() if name.startswith("weight") else torch.ones(4)
        torch.testing.assert_close(own, square / length)


def test_zero_rho_is_plain_training():
    np.testing.assert_array_equal(step(QuadraticASAM(ASAMOptions(rho=0))), step(Quadratic()))


def test_batch_norm_counts_batches_once():
    images, labels = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    finals = {}
    for name, rule in {"plain": LocalRule(), "asam": ASAM(ASAMOptions(rho=0.5))}.items():
        generator = torch.Generator().manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        for parameter in model.parameters():
            parameter.data.uniform_(-1, 1, generator=generator)
        train(model, rule, images, labels)
        finals[name] = model
    plain, asam = finals["plain"][1], finals["asam"][1]
    assert int(asam.num_batches_tracked) == int(plain.num_batches_tracked) == 1
    assert torch.equal(asam.running_mean, plain.running_mean)
    assert asam.track_running_stats
    assert not torch.equal(finals["asam"][0].weight, finals["plain"][0].weight)
