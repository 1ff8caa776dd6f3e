"""Layers by kernels of our own: the values and gradients of PyTorch's operations.

Without a GPU the kernels run in Triton's interpreter, which is slow: the layers are small.
"""

import os
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedmr_flwr.errors import ConfigError
from fedmr_flwr.models import layers
from tests.support.tools import ROOT

pytest.importorskip("triton", reason="Triton is not installed")

CPU = torch.device("cpu")
DEVICES = [
    CPU,
    pytest.param(
        torch.device("cuda"),
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
        ],
    ),
]


@pytest.fixture(params=DEVICES, ids=str)
def device(request, monkeypatch):
    """Return a device on which kernels of our own run."""
    if request.param == CPU:
        monkeypatch.setattr(layers, "missing", lambda device: None)
    return request.param


def convolution(*sizes, pool=2, images=(4, 9, 8), **options):
    torch.manual_seed(0)
    layer = nn.Conv2d(*sizes, **options)
    return layer, torch.randn(images[0], sizes[0], *images[1:]), pool


def linear(inputs, outputs, batch, **options):
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, **options), torch.randn(batch, inputs), 1


CASES = {
    "first convolution": convolution(1, 16, 5, images=(3, 12, 12)),
    "odd sizes": convolution(3, 5, 3),
    "more channels than a tile": convolution(20, 40, 3, images=(2, 6, 6)),
    "padding": convolution(2, 4, 3, padding=1),
    "stride": convolution(2, 4, 3, stride=2, padding=1, images=(2, 13, 13)),
    "wide pooling": convolution(2, 4, 2, pool=4, images=(2, 11, 9)),
    "no bias": convolution(2, 4, 3, bias=False),
    # Gradients of the weights are summed over two images at a time, of the last group over one.
    "groups of images": convolution(1, 4, 5, images=(3, 16, 16)),
    "linear": linear(70, 40, 33),
    "linear, one example": linear(20, 10, 1),
    "linear, large batch": linear(5, 3, 130),
    "linear, no bias": linear(20, 17, 16, bias=False),
}


def reference(layer, inputs, pool, relu):
    outputs = layer(inputs)
    if pool > 1:
        outputs = functional.max_pool2d(outputs, pool)
    return torch.relu(outputs) if relu else outputs


def assert_near(ours, exact):
    assert ours.shape == exact.shape
    assert (ours.double() - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "plain"])
@pytest.mark.parametrize("name", CASES)
def test_layer_equals_pytorch(device, name, relu):
    layer, inputs, pool = CASES[name]
    layer, inputs = deepcopy(layer).to(device), inputs.clone().to(device).requires_grad_()
    exact, given = deepcopy(layer).double(), inputs.detach().double().requires_grad_()
    outputs = layers.apply(layer, inputs, pool=pool, relu=relu)
    assert type(outputs.grad_fn).__name__ == "_FusedBackward"
    expected = reference(exact, given, pool, relu)
    assert_near(outputs, expected)
    gradient = torch.randn(expected.shape, device=device)
    outputs.backward(gradient)
    expected.backward(gradient.double())
    assert_near(inputs.grad, given.grad)
    for own, theirs in zip(layer.parameters(), exact.parameters(), strict=True):
        assert_near(own.grad, theirs.grad)


@pytest.mark.parametrize("name", ["groups of images", "padding", "stride", "linear", "linear, no bias"])
def test_lanes_compute_as_alone(device, name):
    layer, inputs, pool = CASES[name]
    counts = torch.tensor([len(inputs), 0, len(inputs) // 2], dtype=torch.int32, device=device)
    model = layers.stacked(nn.Sequential(deepcopy(layer)).to(device), counts)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).to(device)
    parts = [torch.randn(inputs.shape, generator=torch.Generator().manual_seed(2 + lane)) for lane in range(3)]
    # Beyond its examples a lane's part is undefined, and must not be read.
    for part, count in zip(parts, counts.tolist(), strict=True):
        part[count:] = torch.nan
    together = torch.cat(parts).to(device).requires_grad_()
    outputs = layers.apply(model[0], together, pool=pool, relu=True)
    gradient = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(9)).to(device)
    for part, count in zip(gradient.chunk(3), counts.tolist(), strict=True):
        part[count:] = torch.nan
    outputs.backward(gradient)
    for lane, count in enumerate(counts.tolist()):
        alone = deepcopy(layer).to(device)
        for parameter, stack in zip(alone.parameters(), model.parameters(), strict=True):
            parameter.data.copy_(stack[lane])
        mine = slice(lane * len(inputs), lane * len(inputs) + count)
        given = together[mine].detach().requires_grad_()
        if count:
            expected = layers.apply(alone, given, pool=pool, relu=True)
            expected.backward(gradient[mine])
            assert torch.equal(outputs[mine], expected)
            assert torch.equal(together.grad[mine], given.grad)
        for parameter, stack in zip(alone.parameters(), model.parameters(), strict=True):
            assert torch.equal(stack.grad[lane], parameter.grad if count else torch.zeros_like(parameter))


def test_lanes_have_their_own_mean_loss(device):
    logits, labels = torch.randn(6, 4, device=device), torch.tensor([0, 1, 2, 3, 0, 1], device=device)
    counts = torch.tensor([3, 1], dtype=torch.int32, device=device)
    together = logits.clone().requires_grad_()
    losses = layers.cross_entropy(together, labels, counts=counts)
    losses.backward(torch.ones_like(losses))
    for lane, count in enumerate([3, 1]):
        mine = slice(3 * lane, 3 * lane + count)
        given = logits[mine].clone().requires_grad_()
        loss = layers.cross_entropy(given, labels[mine])
        loss.backward()
        assert torch.equal(losses[lane], loss) and torch.equal(together.grad[mine], given.grad)


def test_weights_that_cannot_be_stacked_are_refused():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with pytest.raises(ConfigError, match=r"declared stackable, but 1, a BatchNorm1d, cannot be"):
        layers.stacked(model, torch.zeros(2, dtype=torch.int32))


def test_layers_that_share_weights_cannot_be_stacked():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    with pytest.raises(ConfigError, match=r"but 1, a Linear, cannot be: only .* if they share them with no other"):
        layers.stacked(model, torch.zeros(2, dtype=torch.int32))


def test_layer_that_is_used_twice_is_stacked_once():
    model = nn.Module()
    model.layer = nn.Linear(2, 2)
    model.again = [model.layer]
    copy = layers.stacked(model, torch.zeros(3, dtype=torch.int32))
    assert copy.again[0] is copy.layer and copy.layer.weight.shape == (3, 2, 2)


def test_layer_without_a_kernel_cannot_be_stacked(device):
    model = layers.stacked(nn.Sequential(nn.Conv2d(1, 2, 3)), torch.ones(2, dtype=torch.int32)).to(device)
    with pytest.raises(
        ConfigError, match=r"Conv2d\(1, 2, .* cannot be stacked with pool=1 and 1 examples: it must be"
    ):
        layers.apply(model[0], torch.zeros(2, 1, 4, 4, device=device))


def test_first_of_equal_values_wins(device):
    layer = nn.Conv2d(1, 1, 1, bias=False).to(device)
    with torch.no_grad():
        layer.weight.fill_(1)
    image = torch.ones(1, 1, 2, 4, device=device, requires_grad=True)
    layers.apply(layer, image, pool=2, relu=True).sum().backward()
    assert image.grad.tolist() == [[[[1, 0, 1, 0], [0, 0, 0, 0]]]]


def test_relu_passes_no_gradient_at_zero(device):
    layer = nn.Linear(1, 2, bias=False).to(device)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0], [1.0]]))
    layers.apply(layer, torch.ones(1, 1, device=device), relu=True).sum().backward()
    assert layer.weight.grad.tolist() == [[0], [1]]


def test_not_a_number_stays(device):
    layer, images, pool = convolution(1, 2, 1, images=(1, 4, 4))
    images[0, 0, 0, 1] = float("nan")
    found = layers.apply(layer.to(device), images.to(device), pool=pool, relu=True)
    assert found.isnan()[0, 0].tolist() == [[True, False], [False, False]]


def test_channels_last_weights_give_the_same(device):
    layer, images, pool = convolution(3, 5, 3)
    layer, images = layer.to(device), images.to(device)
    expected = layers.apply(layer, images, pool=pool)
    layer.to(memory_format=torch.channels_last)
    found = layers.apply(layer, images.contiguous(memory_format=torch.channels_last), pool=pool)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("layer", "pool"),
    [
        (nn.Conv2d(4, 4, 3), 1),
        (nn.Conv2d(4, 4, 3), 3),
        (nn.Conv2d(4, 4, 3, groups=2), 2),
        (nn.Conv2d(4, 4, 3, dilation=2), 2),
        (nn.Conv2d(4, 4, (3, 1)), 2),
        (nn.Conv2d(4, 4, 3, padding="same"), 2),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), 2),
        (nn.ConvTranspose2d(4, 4, 3), 2),
    ],
    ids=str,
)
def test_other_layers_are_pytorchs(device, layer, pool):
    layer, images = deepcopy(layer).to(device), torch.randn(2, 4, 9, 9, device=device)
    found = layers.apply(layer, images, pool=pool, relu=True)
    assert type(found.grad_fn).__name__ == "ReluBackward0"
    assert torch.equal(found, reference(layer, images, pool, True))


class Doubling(nn.Linear):
    """A layer of a user's own."""

    def forward(self, inputs):
        return 2 * super().forward(inputs)


def test_subclass_keeps_its_own_forward(device):
    layer, inputs = Doubling(3, 2).to(device), torch.randn(4, 3, device=device)
    assert torch.equal(layers.apply(layer, inputs), layer(inputs))


def test_hooks_are_called(device):
    layer, inputs = nn.Linear(3, 2).to(device), torch.randn(4, 3, device=device)
    layer.register_forward_hook(lambda module, given, found: found + 1)
    assert torch.equal(layers.apply(layer, inputs), layer(inputs))


@pytest.mark.parametrize(
    ("layer", "shape", "pool"),
    [
        (nn.Linear(20, 4), (3, 16), 1),
        (nn.Linear(16, 4), (3, 20), 1),
        (nn.Conv2d(3, 4, 3), (2, 1, 8, 8), 2),
        (nn.Conv2d(3, 4, 3).double(), (2, 3, 8, 8), 2),
    ],
    ids=str,
)
def test_unfit_inputs_are_pytorchs_error(device, layer, shape, pool):
    with pytest.raises(RuntimeError):
        layers.apply(deepcopy(layer).to(device), torch.randn(*shape, device=device), pool=pool)


def test_many_classes_and_strided_labels(device):
    logits = torch.randn(6, 20_000, device=device)
    labels = torch.arange(12, device=device).reshape(6, 2)[:, 1]
    for some in (logits, logits[:, :12].contiguous()):
        found, expected = layers.cross_entropy(some, labels), functional.cross_entropy(some, labels)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_label_beyond_the_classes_is_not_a_number(device):
    logits = torch.zeros(2, 3, device=device)
    assert layers.cross_entropy(logits, torch.tensor([0, 3], device=device)).isnan()


def test_cpu_uses_pytorch():
    layer, inputs, _ = linear(3, 2, 4)
    assert type(layers.apply(layer, inputs).grad_fn).__name__ == "AddmmBackward0"


@pytest.mark.parametrize("batch", [1, 50, 130])
def test_cross_entropy_equals_pytorch(device, batch):
    torch.manual_seed(0)
    logits = (10 * torch.randn(batch, 12)).to(device).requires_grad_()
    labels = torch.randint(0, 12, (batch,), device=device)
    exact = logits.detach().double().requires_grad_()
    loss, expected = layers.cross_entropy(logits, labels), functional.cross_entropy(exact, labels)
    loss.backward()
    expected.backward()
    assert_near(loss, expected)
    assert_near(logits.grad, exact.grad)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter
def test_cross_entropy_of_infinite_logits_is_not_a_number(device):
    logits = torch.tensor([[0.0, float("inf")], [0.0, 1.0]], device=device)
    assert layers.cross_entropy(logits, torch.tensor([0, 0], device=device)).isnan()


@pytest.mark.slow
def test_kernels_compile_for_a_card(tmp_path):
    from fedmr_flwr.gpu import fetch
    from fedmr_flwr.models import kernels

    # The interpreter takes more than the compiler does.
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.compiled"],
        cwd=ROOT, env=env | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    source = "".join(Path(module.__file__).read_text() for module in (kernels, fetch))
    assert set(done.stdout.split()) == set(re.findall(r"\b(_\w+)\[.+\]\(\n", source)), "all that are launched"
