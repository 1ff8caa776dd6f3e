import numpy as np
import pytest
import torch
from torch import nn

from fedmr_flwr.algorithms.fedasam import ASAM, ASAMOptions
from fedmr_flwr.training.rules import LocalRule


class Quadratic(LocalRule):
    """The loss 3 a^2 + b^2 / 2 + c of a weight [a, b] and a bias c, instead of cross-entropy."""

    def loss(self, model, inputs, labels):
        a, b = model.weight[0]
        return 3 * a**2 + b**2 / 2 + 2 * model.bias[0]


class QuadraticASAM(ASAM):
    loss = Quadratic.loss


def step(rule, weight=(0.5, -2.0), bias=1.0, lr=0.1):
    model = nn.Linear(2, 1)
    model.load_state_dict({"weight": torch.tensor([weight]), "bias": torch.tensor([bias])})
    rule.begin(model, None)
    loss = rule.step(model, torch.optim.SGD(model.parameters(), lr), torch.zeros(1, 2), torch.zeros(1))
    return np.array([*model.weight.detach()[0].tolist(), model.bias.item()]), loss.item()


@pytest.mark.parametrize(("rho", "eta"), [(0.1, 0.0), (0.5, 0.0), (0.5, 0.2)])
def test_a_step_by_hand(rho, eta):
    a, b, c = 0.5, -2.0, 1.0
    scales = np.array([abs(a) + eta, abs(b) + eta, 1.0])  # a bias is not scaled
    gradient = np.array([6 * a, b, 2.0])
    climb = rho * scales**2 * gradient / np.linalg.norm(scales * gradient)
    there = np.array([6 * (a + climb[0]), b + climb[1], 2.0])
    found, loss = step(QuadraticASAM(ASAMOptions(rho=rho, eta=eta)))
    np.testing.assert_allclose(found, np.array([a, b, c]) - 0.1 * there, rtol=1e-6)
    assert loss == pytest.approx(3 * a**2 + b**2 / 2 + 2 * c), "the loss that is reported is that at the model itself"


def test_all_weights_of_an_lstm_are_scaled():
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


def test_without_radius_it_is_plain_training_bit_for_bit():
    np.testing.assert_array_equal(step(QuadraticASAM(ASAMOptions(rho=0)))[0], step(Quadratic())[0])


def test_batch_norm_counts_each_batch_once_and_from_the_model_itself():
    images, labels = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    finals = {}
    for name, rule in {"plain": LocalRule(), "asam": ASAM(ASAMOptions(rho=0.5))}.items():
        generator = torch.Generator().manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        for parameter in model.parameters():
            parameter.data.uniform_(-1, 1, generator=generator)
        rule.begin(model, None)
        rule.step(model, torch.optim.SGD(model.parameters(), 0.1), images, labels)
        finals[name] = model
    plain, asam = finals["plain"][1], finals["asam"][1]
    assert int(asam.num_batches_tracked) == int(plain.num_batches_tracked) == 1
    assert torch.equal(asam.running_mean, plain.running_mean)
    assert asam.track_running_stats
    assert not torch.equal(finals["asam"][0].weight, finals["plain"][0].weight)
