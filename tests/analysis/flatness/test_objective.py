"""The derivatives of networks, against their closed forms and full Hessians."""

import numpy as np
import pytest
import torch
from hessian_eigenthings import HessianOperator, lanczos
from hessian_eigenthings.loss_fns import supervised_loss
from torch import nn
from torch.nn import functional

from fedmr_flwr.analysis.flatness.curvature import top_eigenvalues, trace
from fedmr_flwr.analysis.flatness.objective import Objective
from fedmr_flwr.data.base import Dataset, Examples

CPU = torch.device("cpu")


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (600, 1, 3, 3), dtype=torch.uint8, generator=generator)
    examples = Examples(inputs, torch.randint(0, 3, (600,), generator=generator))

    class Scaled(Dataset):
        def prepare(self, inputs):
            return inputs / 255

    return Scaled(examples, examples, 3, None)


def network(*hidden):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), *hidden)


def objective(model, data):
    return Objective(model, data, data.train, CPU)


def full_hessian(model, data):
    parameters = dict(model.named_parameters())
    sizes = [own.numel() for own in parameters.values()]

    def loss(flat):
        pieces = [piece.view_as(own) for piece, own in zip(flat.split(sizes), parameters.values(), strict=True)]
        logits = torch.func.functional_call(
            model, dict(zip(parameters, pieces, strict=True)), data.prepare(data.train.inputs)
        )
        return functional.cross_entropy(logits, data.train.labels)

    flat = torch.cat([own.detach().reshape(-1) for own in parameters.values()])
    return torch.autograd.functional.hessian(loss, flat).numpy().astype(np.float64)


def test_products_are_those_of_the_full_hessian(data):
    model = network(nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 3))
    hessian = full_hessian(model, data)
    found = objective(model, data).products(np.eye(len(hessian)))
    assert found == pytest.approx(hessian, abs=1e-6)


def test_eigenvalues_and_trace_are_those_of_the_full_hessian(data):
    model = network(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3))
    hessian = full_hessian(model, data)
    own = objective(model, data)
    top = top_eigenvalues(own.products, own.size, 3, np.random.default_rng(0))
    assert top == pytest.approx(np.linalg.eigvalsh(hessian)[::-1][:3], rel=1e-3)
    found = trace(own.products, own.size, 400, np.random.default_rng(0))
    assert abs(found.mean - np.trace(hessian)) < 4 * found.error


def test_the_hessian_of_softmax_regression_is_its_closed_form(data):
    # The mean over examples of (diag(p) - pp') with xx', Kronecker's product.
    model = network(nn.Linear(9, 3, bias=False))
    inputs = data.prepare(data.train.inputs).flatten(1).double()
    shares = torch.softmax(inputs @ model[1].weight.detach().double().T, 1)
    between = torch.diag_embed(shares) - shares[:, :, None] * shares[:, None, :]
    expected = torch.einsum("nab,ni,nj->aibj", between, inputs, inputs).reshape(27, 27) / len(inputs)
    assert objective(model, data).products(np.eye(27)) == pytest.approx(expected.numpy(), abs=1e-6)


def test_the_gradient_is_the_slope_of_the_loss(data):
    own = objective(network(nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 3)), data)
    slope = own.gradient()
    # Along the gradient, where the difference of the losses is large beside their rounding.
    step = 1e-2 * slope / np.linalg.norm(slope)
    assert own.loss(step) - own.loss(-step) == pytest.approx(2 * slope @ step, rel=1e-2)


def test_a_step_leaves_the_network_where_it_was(data):
    own = objective(network(nn.Linear(9, 3)), data)
    before = own.loss()
    assert own.loss(np.arange(own.size) / 10) != before
    assert own.loss() == before


def test_the_given_network_is_not_changed(data):
    model = network(nn.Linear(9, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = objective(model, data)
    own.products(np.ones((1, own.size)))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_batchnorm_uses_its_running_statistics(data):
    model = network(nn.BatchNorm1d(9), nn.Linear(9, 3))
    model[1].running_mean += 0.5
    expected = functional.cross_entropy(model.eval()(data.prepare(data.train.inputs)), data.train.labels)
    assert objective(model.train(), data).loss() == pytest.approx(expected.item(), rel=1e-5)


def test_frozen_weights_are_not_counted(data):
    model = network(nn.Linear(9, 4), nn.Linear(4, 3))
    model[1].requires_grad_(False)
    assert objective(model, data).size == 4 * 3 + 3


def test_eigenvalues_are_those_of_another_library(data):
    model = network(nn.Linear(9, 40), nn.ReLU(), nn.Linear(40, 3))
    own = objective(model, data)
    found = top_eigenvalues(own.products, own.size, 5, np.random.default_rng(0))
    batch = (data.prepare(data.train.inputs), data.train.labels)
    operator = HessianOperator(model.eval(), [batch], supervised_loss(functional.cross_entropy))
    theirs = lanczos(operator, k=5, which="LA", max_iter=100, seed=0, reorthogonalize=True).eigenvalues
    assert found == pytest.approx(np.sort(theirs.numpy())[::-1], rel=1e-3)
