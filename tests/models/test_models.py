import pytest
import torch

from fedmr_flwr import models
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.models.base import initialise

SHAPES = {"cnn": [(1, 28, 28), (1, 8, 8)]}
CASES = [(name, shape) for name, shapes in SHAPES.items() for shape in shapes]


def test_every_model_is_in_this_table():
    assert set(SHAPES) == set(models.MODELS)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_forward_is_head_of_features(name, shape):
    model = models.build(name, shape, 7)
    images = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    logits = model(images)
    assert logits.shape == (3, 7)
    assert torch.equal(logits, model.head(model.features(images)))


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_the_seed_decides_the_weights_and_nothing_global_is_drawn(name, shape):
    before = torch.get_rng_state()
    a, b, c = (models.build(name, shape, 10, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))


def test_the_authors_cnn_has_their_size():
    model = models.build("cnn", (1, 28, 28), 10)
    assert models.parameter_count(model) == 147_146
    assert len(model.state_dict()) == 8
    assert models.parameter_count(models.build("cnn", (1, 28, 28), 62)) == 160_510


def test_weights_are_pytorchs_default():
    # PyTorch draws weights and biases of a layer from U(-b, b), b = 1 / sqrt(fan in).
    model = models.build("cnn", (1, 28, 28), 10)
    for layer, fan_in in ((model.conv1, 25), (model.conv2, 400), (model.hidden[0], 512), (model.classifier, 256)):
        bound = fan_in**-0.5
        for values in (layer.weight, layer.bias):
            assert float(values.detach().abs().max()) <= bound
        assert float(layer.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_a_module_without_known_weights_is_refused():
    with pytest.raises(TypeError, match="Bilinear"):
        initialise(torch.nn.Bilinear(2, 2, 2), torch.Generator())


def test_a_buffer_without_known_values_is_refused():
    module = torch.nn.Module()
    module.register_buffer("scale", torch.ones(1))
    with pytest.raises(TypeError, match="Module"):
        initialise(module, torch.Generator())


def test_an_unknown_model_and_an_unfit_shape_are_refused():
    with pytest.raises(ConfigError, match="'resnet' is not known; choose one of cnn"):
        models.build("resnet", (1, 28, 28), 10)
    with pytest.raises(ConfigError, match=r"'cnn' is not defined for images of shape \[2, 9, 9\]"):
        models.build("cnn", (2, 9, 9), 10)
