"""Lanes: clients that train a step at a time, and what their modules draw meanwhile."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedmr_flwr.config.training import Training
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.models.base import Dropout
from fedmr_flwr.training.lane import Lane
from fedmr_flwr.training.rules import LocalRule
from fedmr_flwr.training.schedule import BatchSchedule, batch_sizes, longest_order
from fedmr_flwr.training.sgd import fit

DRAWS = torch.Generator().manual_seed(0)
EXAMPLES = Examples(torch.randn(11, 4, generator=DRAWS), torch.arange(11) % 3)
DATA = Dataset(EXAMPLES, EXAMPLES, 3, None)
TRAINING = Training(lr=0.1, local_epochs=2, batch_size=4)
MODULES = {"no dropout": nn.Identity, "nn.Dropout": lambda: nn.Dropout(0.5), "our Dropout": lambda: Dropout(0.5)}


def network(module):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), module, nn.Linear(8, 3))
    with torch.no_grad():
        for at, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.sin(torch.arange(parameter.numel()) + at).view_as(parameter))
    return model


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def trained(module, seed):
    model = network(module)
    fit(model, DATA, EXAMPLES, TRAINING, np.random.default_rng(seed))
    return weights(model)


def started(lane, seed):
    lane.begin(np.random.default_rng(seed), LocalRule())
    return lane


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_lanes_may_take_turns(module):
    lanes = [started(Lane(network(module()), DATA, EXAMPLES, TRAINING), seed) for seed in (1, 2)]
    while sum(lane.step() for lane in lanes):
        pass
    for lane, seed in zip(lanes, (1, 2), strict=True):
        assert torch.equal(weights(lane.model), trained(module(), seed))


@pytest.mark.parametrize("module", list(MODULES.values())[1:], ids=list(MODULES)[1:])
def test_dropout_depends_on_the_seed(module):
    first = trained(module(), 1)
    torch.rand(7)
    assert torch.equal(first, trained(module(), 1))
    assert not torch.equal(first, trained(module(), 2))


@pytest.mark.parametrize("name", ["nn.Dropout", "our Dropout"])
def test_global_generator_is_restored(name):
    lane, before = started(Lane(network(MODULES[name]()), DATA, EXAMPLES, TRAINING), 1), torch.get_rng_state()
    lane.step()
    assert torch.equal(torch.get_rng_state(), before)
    lane.run()
    assert torch.equal(torch.get_rng_state(), before)


def test_error_restores_the_generator():
    class Failing(nn.Module):
        def forward(self, values):
            torch.rand(1)
            raise ValueError

    lane, before = started(Lane(network(Failing()), DATA, EXAMPLES, TRAINING), 1), torch.get_rng_state()
    with pytest.raises(ValueError):
        lane.step()
    assert torch.equal(torch.get_rng_state(), before)


def test_module_draws_are_independent():
    """A dropout that drops nothing draws all the same."""
    assert torch.equal(trained(nn.Dropout(1e-12), 1), trained(nn.Identity(), 1))


def test_lane_trains_clients_in_turn():
    lane, start = Lane(network(nn.Dropout(0.5)), DATA, EXAMPLES, TRAINING), network(nn.Identity()).state_dict()
    for seed in (1, 2):
        lane.model.load_state_dict(start)
        result = started(lane, seed).run()
        expected = network(nn.Dropout(0.5))
        assert result == fit(expected, DATA, EXAMPLES, TRAINING, np.random.default_rng(seed))
        assert torch.equal(weights(lane.model), weights(expected))


def test_lane_uses_the_given_indices():
    indices = torch.tensor([9, 2, 5, 7, 0])
    lane = Lane(network(nn.Identity()), DATA, EXAMPLES, TRAINING)
    lane.begin(np.random.default_rng(1), LocalRule(), indices=indices)
    result, expected = lane.run(), network(nn.Identity())
    own = Examples(EXAMPLES.inputs[indices], EXAMPLES.labels[indices])
    assert result == fit(expected, DATA, own, TRAINING, np.random.default_rng(1))
    assert torch.equal(weights(lane.model), weights(expected))


def test_step_returns_false_at_the_end():
    lane = started(Lane(network(nn.Identity()), DATA, EXAMPLES, TRAINING), 1)
    assert [lane.step() for _ in range(8)] == [True] * 6 + [False] * 2


def test_last_batch_may_be_smaller():
    assert list(batch_sizes(7, Training(local_epochs=2, batch_size=3))) == [3, 3, 1, 3, 3, 1]
    assert list(batch_sizes(6, Training(local_epochs=1, batch_size=3))) == [3, 3]
    assert list(batch_sizes(2, Training(local_epochs=3, batch_size=50))) == [2, 2, 2]


def test_fractions_are_whole_steps():
    assert list(batch_sizes(7, Training(local_epochs=1.5, batch_size=3))) == [3, 3, 1, 3]
    assert list(batch_sizes(7, Training(local_epochs=0.1, batch_size=3))) == [3], "at least one"
    assert list(batch_sizes(7, Training(local_steps=5, batch_size=3))) == [3, 3, 1, 3, 3]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.floats(0.05, 4), st.booleans())
def test_order_has_room_for_every_client(largest, examples, batch_size, amount, steps):
    length = {"local_steps": int(amount) + 1} if steps else {"local_epochs": amount}
    training = Training(batch_size=batch_size, **length)
    schedule = BatchSchedule.draw(min(examples, largest), (), training, np.random.default_rng(0))
    assert sum(batch_sizes(min(examples, largest), training)) <= len(schedule.order)
    assert len(schedule.order) <= longest_order(largest, training)
