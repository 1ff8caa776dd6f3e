"""A network in two parts."""

import pytest
import torch
from torch import nn

from fedmr_flwr import models
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.models.base import Classifier
from fedmr_flwr.models.packing import layout_of
from fedmr_flwr.models.parts import ends_with, last_layer, represent

X = torch.rand(3, 4)


class Reversed(nn.Module):
    """Registers its last layer first."""

    def __init__(self, softmax=False):
        super().__init__()
        self.fc, self.body, self.softmax = nn.Linear(2, 3), nn.Sequential(nn.Linear(4, 2), nn.Tanh()), softmax

    def forward(self, values):
        logits = self.fc(self.body(values))
        return logits.log_softmax(1) if self.softmax else logits


class InTwo(Classifier):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(5, 2), nn.Linear(2, 3))


@pytest.mark.parametrize(
    ("model", "path", "expected"),
    [
        (Reversed(), None, lambda model: model.body(X)),
        (Reversed(softmax=True), None, lambda model: model.body(X)),
        (Reversed(), "body.0", lambda model: model.body[0](X)),
        (InTwo(), None, lambda model: model.features(X)),
        (InTwo(), "head.0", lambda model: model.head[0](model.features(X))),
        (nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 2), nn.Flatten()), "1", lambda model: model(X)),
    ],
)
def test_representations(model, path, expected):
    logits, found = represent(model, X, path)
    assert torch.equal(logits, model(X)) and torch.equal(found, expected(model))
    assert not any(module._forward_hooks for module in model.modules()), "nothing stays behind"


@pytest.mark.parametrize(
    ("model", "path", "words"),
    [
        (Reversed(), "nobody", "has no module 'nobody', which model.features names; its own are fc, body"),
        (nn.Sequential(nn.Identity()), None, "does not use a linear layer; name the module"),
        (nn.LSTM(4, 3), "", "does not use the module '', which model.features names, for a tensor"),
    ],
)
def test_missing_representation_is_refused(model, path, words):
    with pytest.raises(ConfigError, match=words):
        represent(model, X, path)


def test_last_layer_by_name_or_place():
    assert last_layer(Reversed()) == "body.0"
    assert last_layer(InTwo()) == "head.1"
    named = Reversed()
    named.head = named.fc
    del named.fc
    assert last_layer(named) == layout_of(named).head == "head"
    assert last_layer(nn.Sequential(nn.Identity())) == ""


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_last_layer_of_every_model(name):
    shape = {"charlstm": (80,), "vgg-fedmr": (1, 28, 28)}.get(name, (3, 32, 32))
    assert last_layer(models.build(name, shape, 4)) == "classifier"


def test_other_ends_are_refused():
    model = Reversed()
    assert torch.equal(ends_with(model, model.fc, X), model(X))
    for wrong, layer in ((model, model.body[0]), (Reversed(softmax=True), None)):
        with pytest.raises(ConfigError, match="output must be that of its last linear layer"):
            ends_with(wrong, layer or wrong.fc, X)
