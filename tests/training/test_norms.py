"""BatchNorm in local training: batches of one example."""

import numpy as np
import pytest
import torch
from torch import nn

from fedmr_flwr.config.training import Training
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.training.norms import single_values_allowed
from fedmr_flwr.training.sgd import fit

X = torch.rand(5, 2, 1, 1)


def network(norm):
    torch.manual_seed(0)
    flat = nn.Flatten() if isinstance(norm, nn.BatchNorm1d) else nn.Identity()
    return nn.Sequential(flat, norm, nn.Flatten(), nn.Linear(2, 3))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(2), nn.BatchNorm2d(2)], ids=lambda norm: type(norm).__name__)
@pytest.mark.parametrize(("examples", "batch_size"), [(5, 2), (5, 4), (1, 2), (3, 1)])
def test_last_batch_of_one_is_trained(norm, examples, batch_size):
    model, few = network(norm), Examples(X[:examples], torch.arange(examples) % 3)
    before = model[3].weight.detach().clone()
    training = Training(lr=0.1, local_epochs=2, batch_size=batch_size)
    result = fit(model, Dataset(few, few, 3, None), few, training, np.random.default_rng(0))
    assert np.isfinite(result.loss) and not torch.equal(before, model[3].weight)
    assert model.training and all(module.training for module in model.modules())


def test_single_value_is_normalised_as_in_evaluation():
    norm = nn.BatchNorm1d(2)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
    norm.running_var.fill_(4)
    model = nn.Sequential(norm)
    with single_values_allowed(model):
        found = model(torch.tensor([[5.0, 2.0]]))
    assert found.detach().tolist() == pytest.approx(np.array([[2.0, 0.0]]), abs=1e-5)
    assert norm.num_batches_tracked == 0 and norm.running_mean.tolist() == [1, 2]
    assert model(torch.rand(3, 2)).mean().item() == pytest.approx(0, abs=1e-6), "by the batch again"


def test_several_pixels_are_normalised_by_themselves():
    norm = nn.BatchNorm2d(2)
    image = torch.rand(1, 2, 3, 3)
    with single_values_allowed(norm):
        assert torch.equal(norm(image), nn.BatchNorm2d(2)(image))
    assert norm.num_batches_tracked == 1


def test_frozen_norm_stays_frozen():
    model = nn.Sequential(nn.BatchNorm1d(2).eval(), nn.BatchNorm1d(2))
    with single_values_allowed(model):
        model(torch.rand(1, 2))
    assert [norm.training for norm in model] == [False, True]
