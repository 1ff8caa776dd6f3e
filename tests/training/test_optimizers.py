"""Every optimiser and option of local training, compared with a plain loop of PyTorch's own."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedmr_flwr import models
from fedmr_flwr.config.data import Data
from fedmr_flwr.config.training import Training
from fedmr_flwr.data import datasets
from fedmr_flwr.training.devices import place
from fedmr_flwr.training.lane import Lane
from fedmr_flwr.training.rules import LocalRule
from fedmr_flwr.training.sgd import fit

CPU = torch.device("cpu")
RECIPES = {
    "sgd": {"weight_decay": 1e-2},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "adam": {"optimizer": "adam", "lr": 1e-3, "weight_decay": 1e-2},
    "adamw": {"optimizer": "adamw", "lr": 1e-3, "betas": (0.5, 0.9), "weight_decay": 0.1},
    "clipped": {"clip_norm": 0.5},
    "smoothed": {"label_smoothing": 0.1},
    "steps": {"local_epochs": None, "local_steps": 7},
    "half epochs": {"local_epochs": 1.5},
    "all": {"clip_norm": 1.0, "label_smoothing": 0.2, "weight_decay": 1e-3, "local_epochs": 0.75},
}
STEPS = {"steps": 7, "half epochs": 6, "all": 3}  # of four in an epoch; otherwise two epochs


@pytest.fixture(scope="module")
def data():
    return datasets.load(Data(), None)


def plain_loop(model, data, examples, training, steps):
    """Train as a script without this package would."""
    rng, count = np.random.default_rng(0), len(examples)
    if training.optimizer == "sgd":
        own = {"momentum": training.momentum, "nesterov": training.nesterov}
    else:
        own = {"betas": training.betas}
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer]
    optimizer = kind(model.parameters(), training.lr, weight_decay=training.weight_decay, fused=True, **own)
    done = 0
    while done < steps:
        for batch in torch.from_numpy(rng.permutation(count)).split(training.batch_size)[: steps - done]:
            inputs = data.prepare(examples.inputs[batch]).contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            labels, smoothing = examples.labels[batch], training.label_smoothing
            functional.cross_entropy(model(inputs), labels, label_smoothing=smoothing).backward()
            if training.clip_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
            optimizer.step()
            done += 1


@pytest.mark.parametrize("name", RECIPES)
def test_fit_equals_a_plain_loop(data, name):
    training, examples = (
        Training(**{"batch_size": 30, "local_epochs": 2} | RECIPES[name]),
        data.train.select(np.arange(100), CPU),
    )
    ours = models.build("cnn", data.input_shape, 10)
    place(ours, CPU)
    plain, default = deepcopy(ours), deepcopy(ours)
    fit(ours, data, examples, training, np.random.default_rng(0))
    plain_loop(plain, data, examples, training, STEPS.get(name, 8))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))
    fit(default, data, examples, Training(batch_size=30, local_epochs=2), np.random.default_rng(0))
    assert not torch.equal(ours.classifier.weight, default.classifier.weight), "the options make a difference"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_second_client_starts_afresh(data, optimizer):
    training, examples = Training(optimizer=optimizer, batch_size=30), data.train.select(np.arange(100), CPU)
    fresh = models.build("cnn", data.input_shape, 10)
    place(fresh, CPU)
    start, lane = deepcopy(fresh.state_dict()), Lane(deepcopy(fresh), data, examples, training)
    for seed in (1, 2):
        lane.model.load_state_dict(start)
        lane.begin(np.random.default_rng(seed), LocalRule())
        lane.run()
    fit(fresh, data, examples, training, np.random.default_rng(2))
    assert all(torch.equal(a, b) for a, b in zip(lane.model.parameters(), fresh.parameters(), strict=True))


def test_loss_is_the_mean_of_the_steps_done(data):
    model = models.build("mlp", data.input_shape, 10)
    torch.nn.init.zeros_(model.classifier.weight)
    torch.nn.init.zeros_(model.classifier.bias)
    training = Training(lr=1e-12, batch_size=30, local_steps=5)
    done = fit(model, data, data.train.select(np.arange(100), CPU), training, np.random.default_rng(0))
    assert done.loss == pytest.approx(np.log(10), rel=1e-5)
