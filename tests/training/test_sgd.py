"""The training loop: what `fit` does to a model, compared with loops and sums written out."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedmr_flwr import models
from fedmr_flwr.config.data import Data
from fedmr_flwr.config.training import Training
from fedmr_flwr.data import datasets
from fedmr_flwr.data.base import Dataset, Examples, Normalisation
from fedmr_flwr.models.packing import layout_of, pack
from fedmr_flwr.training.devices import pick_device, place
from fedmr_flwr.training.evaluation import evaluate
from fedmr_flwr.training.sgd import fit

CPU = torch.device("cpu")


def as_data(inputs, labels=None):
    """Return inputs that are used as they are, as a data set and its training examples."""
    examples = Examples(inputs, torch.zeros(len(inputs), dtype=torch.long) if labels is None else labels)
    return Dataset(examples, examples, 3, None), examples


class BatchSizes(nn.Module):
    """A linear model that writes down what it sees."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.seen = []

    def forward(self, images):
        self.seen.append(images.flatten(1)[:, 0].tolist())
        return self.linear(images.flatten(1))


def test_fit_equals_a_plain_loop():
    data = datasets.load(Data(), None)
    training, examples = Training(batch_size=30, local_epochs=2), data.train.select(np.arange(100), CPU)
    ours = models.build("cnn", data.input_shape, 10)
    place(ours, CPU)
    plain = deepcopy(ours)
    fit(ours, data, examples, training, np.random.default_rng(0))

    rng = np.random.default_rng(0)
    optimizer = torch.optim.SGD(plain.parameters(), training.lr, training.momentum, fused=True)
    for _ in range(training.local_epochs):
        for batch in torch.from_numpy(rng.permutation(100)).split(training.batch_size):
            inputs = data.prepare(examples.inputs[batch]).contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            functional.cross_entropy(plain(inputs), examples.labels[batch]).backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))


def test_momentum_steps_by_hand():
    model = nn.Linear(2, 2, bias=False)
    weight = torch.tensor([[0.5, -0.25], [0.0, 1.0]])
    model.load_state_dict({"weight": weight})
    images, labels = torch.tensor([[1.0, 2.0]]), torch.tensor([1])
    training = Training(lr=0.1, momentum=0.5, local_epochs=3, batch_size=5)
    fit(model, *as_data(images, labels), training, np.random.default_rng(0))

    velocity = torch.zeros(2, 2)
    for _ in range(3):  # the gradient of cross-entropy: (softmax - one-hot) outer x
        gradient = torch.outer(torch.softmax(weight @ images[0], 0) - torch.tensor([0.0, 1.0]), images[0])
        velocity = 0.5 * velocity + gradient
        weight = weight - 0.1 * velocity
    torch.testing.assert_close(model.weight.detach(), weight)


def test_epoch_uses_each_example_once():
    model = BatchSizes()
    images = torch.arange(23.0).repeat_interleave(4).reshape(23, 1, 2, 2)
    training = Training(lr=1e-6, local_epochs=2, batch_size=10)
    fit(model, *as_data(images), training, np.random.default_rng(0))
    assert [len(batch) for batch in model.seen] == [10, 10, 3] * 2
    first, second = sum(model.seen[:3], []), sum(model.seen[3:], [])
    assert sorted(first) == sorted(second) == list(range(23))
    assert first != second
    assert first != sorted(first)


class Inputs(nn.Module):
    """A linear model that keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16 * 16, 2)
        self.given = []

    def forward(self, images):
        self.given.append(images.clone())
        return self.linear(images.flatten(1))


def test_every_epoch_is_augmented():
    image = torch.randint(1, 256, (1, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    examples = Examples(image.repeat(8, 1, 1, 1), torch.zeros(8, dtype=torch.long))
    data = Dataset(examples, examples, 2, Normalisation((0.5,), (0.25,)))
    plain, changed = Inputs(), Inputs()
    for model, augment in ((plain, False), (changed, True)):
        training = Training(lr=1e-6, local_epochs=2, batch_size=4, augment=augment)
        fit(model, data, examples, training, np.random.default_rng(0))
    assert all(torch.allclose(batch, (image / 255 - 0.5) / 0.25) for batch in plain.given)
    seen = torch.cat(changed.given).flatten(1)
    assert len(seen.unique(dim=0)) > 10, "of sixteen draws out of 50 most differ, in both epochs"
    assert evaluate(changed, data, examples, CPU) and torch.allclose(changed.given[-1], plain.given[0][:1])


def test_reports_the_mean_loss():
    model = BatchSizes()
    with torch.no_grad():
        model.linear.weight.zero_()
        model.linear.bias.zero_()
    training = Training(lr=1e-12, momentum=0, local_epochs=2, batch_size=10)
    done = fit(model, *as_data(torch.rand(23, 1, 2, 2)), training, np.random.default_rng(0))
    assert done.examples == 23
    assert done.loss == pytest.approx(np.log(3), rel=1e-5)


@pytest.mark.parametrize("augment", [False, True])
def test_stream_decides_the_result(augment):
    data = datasets.load(Data(), None)
    examples = data.train.select(np.arange(100), CPU)

    def trained(seed):
        model = models.build("cnn", data.input_shape, 10)
        training = Training(batch_size=20, local_epochs=1, augment=augment)
        fit(model, data, examples, training, np.random.default_rng(seed))
        return pack(model, layout_of(model)).floats

    a, b, c = trained(1), trained(1), trained(2)
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_training_learns_the_digits():
    data = datasets.load(Data(), None)
    model = models.build("cnn", data.input_shape, 10)
    place(model, CPU)
    before = evaluate(model, data, data.test, CPU)
    training = Training(lr=0.05, local_epochs=5, batch_size=20)
    fit(model, data, data.train, training, np.random.default_rng(0))
    after = evaluate(model, data, data.test, CPU)
    assert before.accuracy < 0.3
    assert after.accuracy > 0.9
    assert after.loss < before.loss


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_trains():
    data = datasets.load(Data(), None)
    device = pick_device("auto")
    assert device.type == "cuda"
    model = models.build("cnn", data.input_shape, 10)
    place(model, device)
    training = Training(lr=0.05, local_epochs=5, batch_size=20)
    fit(model, data, data.train.select(np.arange(len(data.train)), device), training, np.random.default_rng(0))
    assert evaluate(model, data, data.test, device).accuracy > 0.9
    layout = layout_of(model)
    assert np.isfinite(pack(model, layout).floats).all()
