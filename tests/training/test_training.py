import os

import numpy as np
import pytest
import torch
from torch import nn

from fedmr_flwr import config, models
from fedmr_flwr.config.settings import Training
from fedmr_flwr.data import datasets
from fedmr_flwr.data.base import Dataset, Examples, Normalisation
from fedmr_flwr.errors import DeviceError
from fedmr_flwr.models.packing import layout_of, pack, unpack
from fedmr_flwr.training.devices import arithmetic, pick_device, place, threads
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


def test_fit_takes_the_steps_of_sgd_with_momentum_by_hand():
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


def test_an_epoch_uses_every_example_once_in_shuffled_batches_with_the_last_one_smaller():
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


def test_every_batch_is_normalised_and_augmented_anew_in_every_epoch():
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


def test_fit_reports_the_mean_loss_over_all_examples():
    model = BatchSizes()
    with torch.no_grad():
        model.linear.weight.zero_()
        model.linear.bias.zero_()
    training = Training(lr=1e-12, momentum=0, local_epochs=2, batch_size=10)
    done = fit(model, *as_data(torch.rand(23, 1, 2, 2)), training, np.random.default_rng(0))
    assert done.examples == 23
    assert done.loss == pytest.approx(np.log(3), rel=1e-5)


@pytest.mark.parametrize("augment", [False, True])
def test_the_stream_alone_decides_the_result(augment):
    data = datasets.load(config.Data(), None)
    examples = data.train.select(np.arange(100), CPU)

    def trained(seed):
        model = models.build("cnn", data.input_shape, 10)
        training = Training(batch_size=20, local_epochs=1, augment=augment)
        fit(model, data, examples, training, np.random.default_rng(seed))
        return pack(model, layout_of(model)).floats

    before = torch.get_rng_state()
    a, b, c = trained(1), trained(1), trained(2)
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    assert torch.equal(torch.get_rng_state(), before)


def test_training_learns_the_digits():
    data = datasets.load(config.Data(), None)
    model = models.build("cnn", data.input_shape, 10)
    place(model, CPU)
    before = evaluate(model, data, data.test, CPU)
    training = Training(lr=0.05, local_epochs=5, batch_size=20)
    fit(model, data, data.train, training, np.random.default_rng(0))
    after = evaluate(model, data, data.test, CPU)
    assert before.accuracy < 0.3
    assert after.accuracy > 0.9
    assert after.loss < before.loss


class Constant(nn.Module):
    """Answers class 1 with fixed logits."""

    def forward(self, images):
        return torch.tensor([0.0, 2.0]).expand(len(images), 2)


@pytest.mark.parametrize("batch_size", [1, 2, 1000])
def test_evaluate_by_hand(batch_size):
    examples = Examples(torch.zeros(3, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1, 1]))
    data = Dataset(examples, examples, classes=2, normalisation=Normalisation((0.0,), (1.0,)))
    score = evaluate(Constant(), data, examples, CPU, batch_size)
    log_sum = np.log(1 + np.exp(2))
    assert score.accuracy == pytest.approx(2 / 3)
    assert score.loss == pytest.approx((log_sum + 2 * (log_sum - 2)) / 3)
    assert score.examples == 3


def test_evaluation_turns_batch_norm_and_training_off():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 2)).train()
    examples = Examples(torch.ones(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.long))
    evaluate(model, Dataset(examples, examples, 2, Normalisation((0.0,), (1.0,))), examples, CPU)
    assert int(model[0].num_batches_tracked) == 0


def test_pack_and_unpack_move_a_whole_state_dict_buffers_included():
    def network(seed):
        torch.random.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3))

    a, b = network(0), network(1)
    a(torch.rand(4, 1, 5, 5))  # moves BatchNorm's statistics and counter
    layout = layout_of(a)
    packed = pack(a, layout)
    packed.floats.flags.writeable = False
    place(b, CPU)
    unpack(packed, layout, b)
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name
    assert int(b[1].num_batches_tracked) == 1
    np.testing.assert_array_equal(pack(b, layout).floats, packed.floats)


def test_threads_are_set_and_put_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), threads(1):
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_cuda_where_there_is_none_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == CPU
    with pytest.raises(DeviceError, match="device is cuda but the number of CUDA devices here is 0; use device=auto"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match="device is cuda:2 but the number of CUDA devices here is 2"):
        pick_device("cuda:2")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_same_code_trains_on_cuda():
    data = datasets.load(config.Data(), None)
    device = pick_device("auto")
    assert device.type == "cuda"
    model = models.build("cnn", data.input_shape, 10)
    place(model, device)
    training = Training(lr=0.05, local_epochs=5, batch_size=20)
    fit(model, data, data.train.select(np.arange(len(data.train)), device), training, np.random.default_rng(0))
    assert evaluate(model, data, data.test, device).accuracy > 0.9
    layout = layout_of(model)
    assert np.isfinite(pack(model, layout).floats).all()


def flags():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.allow_tf32,
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.mark.parametrize(
    ("precision", "inside"),
    [
        ("float32", (True, "highest", True, False, False)),
        *[(name, (False, "high", False, True, False)) for name in ("tf32", "bf16")],
    ],
)
def test_float32_is_exact_and_deterministic_on_a_gpu_and_afterwards_all_is_as_before(monkeypatch, precision, inside):
    monkeypatch.setattr(os, "environ", {})
    before = flags()
    with arithmetic(precision, torch.device("cuda")):
        assert flags() == inside
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert flags() == before
    with pytest.raises(KeyError), arithmetic(precision, torch.device("cuda")):
        raise KeyError
    assert flags() == before


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_cpu_knows_only_float32(precision):
    with (
        pytest.raises(DeviceError, match=f"precision is {precision}, which needs a CUDA device"),
        arithmetic(precision, torch.device("cpu")),
    ):
        pass
    with arithmetic("float32", torch.device("cpu")):
        assert not torch.are_deterministic_algorithms_enabled()
