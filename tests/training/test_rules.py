"""The contract of a local rule: what the loop hands it, and when."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedmr_flwr.config.training import Training
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.training.rules import LocalRule, Outcome
from fedmr_flwr.training.sgd import fit

EXAMPLES = Examples(torch.tensor([[1.0, 2.0], [-0.5, 1.0], [2.0, 0.25]]), torch.tensor([0, 1, 1]))
DATA = Dataset(EXAMPLES, EXAMPLES, 2, None)


def train(rule, received=None, kept=None, **training):
    """Take plain steps from zero; return the weights and the result."""
    model = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(model.weight)
    how = Training(**{"lr": 0.5, "momentum": 0, "local_epochs": 1, "batch_size": 3} | training)
    result = fit(model, DATA, EXAMPLES, how, np.random.default_rng(0), rule, received, kept)
    return model.weight.detach(), result


class Recording(LocalRule):
    """A rule that writes down its calls."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def begin(self, model, task):
        self.calls.append(("begin", float(task.received["server"][0]), float(task.kept["own"][0])))
        return (torch.ones(1),)

    def adjust(self, model, state):
        self.calls.append(("adjust", *state[0].tolist()))

    def end(self, model, state, task, steps):
        self.calls.append(("end", *state[0].tolist(), steps))
        return Outcome(kept={"own": task.kept["own"] + 1})


def test_rule_gets_its_state_back():
    rule = Recording()
    _, result = train(rule, {"server": np.ones(1)}, {"own": np.full(1, 5.0)}, batch_size=2)
    assert rule.calls == [("begin", 1, 5), ("adjust", 1), ("adjust", 1), ("end", 1, 2)]
    assert result.outcome.kept["own"] == 6


class Pulled(LocalRule):
    """Adds the sum of the weights to the loss, of which every weight has the gradient 1."""

    def forward(self, model, state, inputs, labels):
        return model(inputs), model.weight.sum()


def test_extra_loss_is_trained_on():
    torch.testing.assert_close(train(Pulled())[0], train(LocalRule())[0] - 0.5)


def test_extra_loss_is_not_reported():
    found = train(Pulled(), local_epochs=2)[1].loss
    weight = train(Pulled())[0]
    second = functional.cross_entropy(EXAMPLES.inputs @ weight.T, EXAMPLES.labels)
    torch.testing.assert_close(torch.tensor(found), (np.log(2) + second) / 2)


class Twice(LocalRule):
    """Takes the gradient of the second of two passes."""

    def gradients(self, model, state, backward):
        backward()
        return backward()


def test_backward_starts_from_no_gradient():
    assert torch.equal(train(Twice())[0], train(LocalRule())[0])
