import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedmr_flwr import models
from fedmr_flwr.algorithms.moon import Contrastive, ContrastiveOptions, contrastive
from fedmr_flwr.config.training import Training
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.errors import ConfigError
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


def trained(rule, kept=None):
    model = Net()
    outcome = fit(model, DATA, EXAMPLES, TRAINING, np.random.default_rng(0), rule, kept=kept).outcome
    return model, outcome


def rule(**options):
    return Contrastive(ContrastiveOptions(**options))


def state_of(made, model, kept):
    return made.begin(model, Task(EXAMPLES.labels, TRAINING, np.random.default_rng(0), kept=kept))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_contrast_by_hand():
    own = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    received = torch.tensor([[0.0, 2.0], [4.0, 3.0]])  # cosines 0 and 24/25
    previous = torch.tensor([[5.0, 0.0], [0.0, -1.0]])  # cosines 1 and -4/5
    found = contrastive(own, received, previous, temperature=0.5)
    by_hand = [-np.log(1 / (1 + np.exp(2))), -np.log(np.exp(48 / 25) / (np.exp(48 / 25) + np.exp(-8 / 5)))]
    assert found.item() == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert found.item() > 1, "nearer to the previous model than to the received one is bad"


def test_extra_loss_is_weighted_contrast():
    previous, _ = trained(LocalRule())
    kept = {name: tensor.numpy() for name, tensor in previous.state_dict().items()}
    model, made = Net(), rule(mu=3.0, temperature=0.25)
    state = state_of(made, model, kept)
    with torch.no_grad():
        model.layer.weight += 0.5  # training has moved it away from what was received
    logits, extra = made.forward(model, state, X, EXAMPLES.labels)
    own = model.features(X)
    near, far = (functional.cosine_similarity(own, other.eval().features(X)) / 0.25 for other in (Net(), previous))
    contrast = -(near.exp() / (near.exp() + far.exp())).log().mean()
    torch.testing.assert_close(extra, 3 * contrast)
    torch.testing.assert_close(logits, model.classifier(own))


def test_first_participation_is_plain():
    assert same(trained(rule())[0], trained(LocalRule())[0])


def test_zero_mu_keeps_nothing():
    kept = {name: tensor.numpy() for name, tensor in Net().state_dict().items()}
    model, outcome = trained(rule(mu=0), kept)
    assert same(model, trained(LocalRule())[0])
    assert not outcome.kept


def test_training_depends_on_kept_model():
    first, outcome = trained(rule())
    assert all(np.array_equal(outcome.kept[name], t.numpy()) for name, t in first.state_dict().items())
    second, _ = trained(rule(), outcome.kept)
    assert not same(second, trained(LocalRule())[0])
    elsewhere = {name: np.asarray(array + 1) for name, array in outcome.kept.items()}
    assert not same(second, trained(rule(), elsewhere)[0])


def test_keeps_the_last_trained_model():
    _, first = trained(rule())
    model, second = trained(rule(), first.kept)
    assert all(np.array_equal(second.kept[name], tensor.numpy()) for name, tensor in model.state_dict().items())
    assert not np.array_equal(second.kept["layer.weight"], first.kept["layer.weight"])
    assert not np.array_equal(second.kept["layer.weight"], Net().layer.weight.detach())


def test_other_models_do_not_change():
    _, outcome = trained(rule())
    made, model = rule(), Net()
    received, previous = state = state_of(made, model, outcome.kept)
    before = [{name: tensor.clone() for name, tensor in other.state_dict().items()} for other in state]
    logits, extra = made.forward(model, state, X, EXAMPLES.labels)
    (logits.sum() + extra).backward()
    assert not any(parameter.requires_grad for other in state for parameter in other.parameters())
    for other, values in zip((received, previous), before, strict=True):
        assert all(torch.equal(values[name], tensor) for name, tensor in other.state_dict().items())


def test_batch_norm_counts_batches_once():
    _, outcome = trained(rule())
    assert trained(rule(), outcome.kept)[0].norm.num_batches_tracked == 9


def test_reported_loss_omits_contrast():
    once = Training(lr=0.1, local_epochs=1, batch_size=len(X))
    kept = {name: np.asarray(tensor.numpy() + 1) for name, tensor in Net().state_dict().items()}
    losses = [
        fit(Net(), DATA, EXAMPLES, once, np.random.default_rng(0), made, kept=kept).loss
        for made in (rule(), LocalRule())
    ]
    assert losses[0] == losses[1]


class Plain(nn.Module):
    """A model without `features` and `head`."""

    def __init__(self):
        super().__init__()
        net = Net()
        self.layer, self.norm, self.last = net.layer, net.norm, net.classifier

    def forward(self, images):
        return self.last(torch.tanh(self.norm(self.layer(images))))


def train_plain(model, features=None):
    made = Contrastive(features=features)
    kept = {name: np.asarray(tensor.numpy() + 1) for name, tensor in model.state_dict().items()}
    fit(model, DATA, EXAMPLES, TRAINING, np.random.default_rng(0), made, kept=kept)
    return list(model.parameters())


def test_any_model_has_representations():
    expected, _ = trained(
        rule(), {name: np.asarray(tensor.numpy() + 1) for name, tensor in Net().state_dict().items()}
    )
    assert all(torch.equal(a, b) for a, b in zip(train_plain(Plain()), expected.parameters(), strict=True))


def test_path_names_representations():
    by_norm, by_default = train_plain(Plain(), "norm"), train_plain(Plain())
    assert not torch.equal(by_norm[0], by_default[0])
    of_classifier = train_plain(Net(), "norm")
    assert all(torch.equal(a, b) for a, b in zip(by_norm, of_classifier, strict=True))


def test_model_without_linear_layer_is_refused():
    model = nn.Sequential(nn.Conv1d(1, 2, 2), nn.Flatten())
    with pytest.raises(ConfigError, match=r"moon needs a model with a linear layer, or .* in model.features"):
        state_of(rule(), model, {})
    assert state_of(Contrastive(features="0"), model, {}) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "mobilenet-v2"])
def test_model_with_dropout_can_be_frozen(name):
    model = models.build(name, (3, 32, 32), 2)
    images = Examples(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))
    training = Training(local_epochs=1)
    data = Dataset(images, images, 2, None)
    kept = fit(model, data, images, training, np.random.default_rng(0), rule()).outcome.kept
    fit(model, data, images, training, np.random.default_rng(1), rule(), kept=kept)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
