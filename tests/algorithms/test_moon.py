import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedmr_flwr import models
from fedmr_flwr.algorithms.moon import Contrastive, ContrastiveOptions, contrastive
from fedmr_flwr.config.settings import Training
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.models.base import Classifier
from fedmr_flwr.training.rules import LocalRule, Task
from fedmr_flwr.training.sgd import fit


class Net(Classifier):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(2, 3), nn.BatchNorm1d(3)
        self.classifier = nn.Linear(3, 2)
        with torch.no_grad():
            for at, parameter in enumerate(self.parameters()):
                parameter.copy_(torch.sin(torch.arange(parameter.numel()) + at).view_as(parameter))

    def features(self, images):
        return torch.tanh(self.norm(self.layer(images)))


X = torch.tensor([[1.0, 2.0], [-0.5, 1.0], [2.0, 0.25], [0.0, -1.0], [1.5, -2.0], [0.5, 0.5]])
EXAMPLES = Examples(X, torch.tensor([0, 1, 1, 0, 1, 0]))
DATA = Dataset(EXAMPLES, EXAMPLES, 2, None)
TRAINING = Training(lr=0.1, local_epochs=3, batch_size=2)


def trained(rule, model=None):
    model = model or Net()
    outcome = fit(model, DATA, EXAMPLES, TRAINING, np.random.default_rng(0), rule).outcome
    return model, outcome


def rule(kept=None, **options):
    made = Contrastive(ContrastiveOptions(**options))
    made.kept = kept or {}
    return made


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_loss_by_hand():
    own = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    received = torch.tensor([[0.0, 2.0], [4.0, 3.0]])  # cosines 0 and 24/25
    previous = torch.tensor([[5.0, 0.0], [0.0, -1.0]])  # cosines 1 and -4/5
    found = contrastive(own, received, previous, temperature=0.5)
    by_hand = [-np.log(1 / (1 + np.exp(2))), -np.log(np.exp(48 / 25) / (np.exp(48 / 25) + np.exp(-8 / 5)))]
    assert found.item() == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert found.item() > 1, "nearer to the previous model than to the received one is bad"


def test_what_a_batch_costs_is_cross_entropy_and_the_weighted_contrast():
    previous, _ = trained(LocalRule())
    kept = {name: tensor.numpy() for name, tensor in previous.state_dict().items()}
    model = Net()
    made = rule(kept, mu=3.0, temperature=0.25)
    made.begin(model, Task(EXAMPLES.labels, TRAINING, np.random.default_rng(0)))
    with torch.no_grad():
        model.layer.weight += 0.5  # training has moved it away from what was received
    found = made.loss(model, X, EXAMPLES.labels)
    own = model.features(X)
    near, far = (functional.cosine_similarity(own, other.eval().features(X)) / 0.25 for other in (Net(), previous))
    contrast = -(near.exp() / (near.exp() + far.exp())).log().mean()
    expected = functional.cross_entropy(model.classifier(own), EXAMPLES.labels) + 3 * contrast
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("made", [rule(mu=0), rule(mu=5)], ids=["mu = 0", "the first participation"])
def test_it_is_plain_training_bit_for_bit(made):
    if not made.options.mu:
        made.kept = trained(LocalRule())[1].kept or {k: v.numpy() for k, v in Net().state_dict().items()}
    assert same(trained(made)[0], trained(LocalRule())[0])


def test_the_second_participation_differs_and_uses_the_clients_own_model_of_the_first():
    first, outcome = trained(rule())
    assert all(np.array_equal(outcome.kept[name], t.numpy()) for name, t in first.state_dict().items())
    second, _ = trained(rule(outcome.kept))
    assert not same(second, trained(LocalRule())[0])
    elsewhere = {name: np.asarray(array + 1) for name, array in outcome.kept.items()}
    assert not same(second, trained(rule(elsewhere))[0])


def test_what_is_kept_is_always_the_model_that_was_trained_last():
    _, first = trained(rule())
    model, second = trained(rule(first.kept))
    assert all(np.array_equal(second.kept[name], tensor.numpy()) for name, tensor in model.state_dict().items())
    assert not np.array_equal(second.kept["layer.weight"], first.kept["layer.weight"])
    assert not np.array_equal(second.kept["layer.weight"], Net().layer.weight.detach())


def test_the_other_models_do_not_change_and_batch_norm_counts_each_batch_once():
    _, outcome = trained(rule())
    before = {name: array.copy() for name, array in outcome.kept.items()}
    made = rule(outcome.kept)
    model, _ = trained(made)
    received, previous = made._others
    assert same(received, Net())
    assert all(np.array_equal(before[name], tensor.numpy()) for name, tensor in previous.state_dict().items())
    assert model.norm.num_batches_tracked == 9
    assert not any(parameter.requires_grad for other in made._others for parameter in other.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "mobilenet-v2"])
def test_a_model_with_dropout_can_be_frozen(name):
    model = models.build(name, (3, 32, 32), 2)
    images = Examples(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))
    training = Training(local_epochs=1)
    data = Dataset(images, images, 2, None)
    kept = fit(model, data, images, training, np.random.default_rng(0), rule()).outcome.kept
    fit(model, data, images, training, np.random.default_rng(1), rule(kept))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
