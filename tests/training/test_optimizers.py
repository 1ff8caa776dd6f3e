"""Every optimiser and option of local training, compared with a plain loop of PyTorch's own."""

import subprocess
import sys
from copy import deepcopy
from pathlib import Path

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
from fedmr_flwr.training.optimizers import Optimizer
from fedmr_flwr.training.rules import LocalRule
from fedmr_flwr.training.sgd import fit

ROOT = Path(__file__).parents[2]
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


def of_pytorch(weights, training):
    """PyTorch's own optimiser with a training's options."""
    if training.optimizer == "sgd":
        own = {"momentum": training.momentum, "nesterov": training.nesterov}
    else:
        own = {"betas": training.betas}
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer]
    return kind(weights, training.lr, weight_decay=training.weight_decay, fused=True, **own)


def plain_loop(model, data, examples, training, steps):
    """Train as a script without this package would."""
    rng, count = np.random.default_rng(0), len(examples)
    optimizer = of_pytorch(model.parameters(), training)
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


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam", "adamw"])
def test_weights_without_a_gradient_stay_as_pytorch_leaves_them(name):
    training, rng = Training(**RECIPES[name]), torch.Generator().manual_seed(0)
    ours = [torch.randn(size, generator=rng) for size in (3, 5)]
    theirs = [torch.nn.Parameter(weight.clone()) for weight in ours]
    optimizer, pytorchs = Optimizer(ours, training), of_pytorch(theirs, training)
    for missing in (None, 1, None, 0, 1):
        gradients = [None if at == missing else torch.randn(len(ours[at]), generator=rng) for at in (0, 1)]
        before = [weight.clone() for weight in ours]
        optimizer.step(gradients)
        for weight, gradient in zip(theirs, gradients, strict=True):
            weight.grad = gradient
        pytorchs.step()
        assert missing is None or torch.equal(ours[missing], before[missing])
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_first_gradient_may_come_late():
    weights = [torch.ones(1), torch.ones(1)]
    optimizer = Optimizer(weights, Training(lr=0.1, momentum=0.5))
    optimizer.step([torch.ones(1), None])
    optimizer.step([torch.ones(1), torch.ones(1)])
    assert torch.cat(weights).tolist() == pytest.approx([0.75, 0.9])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_frozen_weights_take_no_memory(optimizer):
    weights = [torch.ones(1), torch.zeros(1).expand(10**13)]  # a state of the second would take 40 TB
    Optimizer(weights, Training(optimizer=optimizer)).step([torch.ones(1), None])
    assert weights[0] < 1


@pytest.mark.slow
def test_training_imports_neither_pytorchs_compiler_nor_sympy():
    code = f"""
import sys, numpy, torch
sys.path.insert(0, {str(ROOT)!r})
from fedmr_flwr import models
from fedmr_flwr.config.data import Data
from fedmr_flwr.config.training import Training
from fedmr_flwr.data import datasets
from fedmr_flwr.training.sgd import fit
heavy = {{"torch._dynamo", "sympy"}}
digits = datasets.load(Data(), None)
model, rng = models.build("cnn", digits.input_shape, 10), numpy.random.default_rng(0)
for name in ("sgd", "adam", "adamw"):
    fit(model, digits, digits.test, Training(optimizer=name, weight_decay=0.1, clip_norm=1, local_epochs=1), rng)
print(*sorted(heavy & set(sys.modules)))
torch.optim.SGD(model.parameters())
print(*sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["", "sympy torch._dynamo", ""]


def test_loss_is_the_mean_of_the_steps_done(data):
    model = models.build("mlp", data.input_shape, 10)
    torch.nn.init.zeros_(model.classifier.weight)
    torch.nn.init.zeros_(model.classifier.bias)
    training = Training(lr=1e-12, batch_size=30, local_steps=5)
    done = fit(model, data, data.train.select(np.arange(100), CPU), training, np.random.default_rng(0))
    assert done.loss == pytest.approx(np.log(10), rel=1e-5)
