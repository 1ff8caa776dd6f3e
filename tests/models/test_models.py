import numpy as np
import pytest
import torch

from fedmr_flwr import models
from fedmr_flwr.config.training import Training
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.core.units import units
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.models.base import Dropout
from fedmr_flwr.models.packing import layout_of
from fedmr_flwr.models.resnet import BasicBlock, Bottleneck
from fedmr_flwr.training.devices import default_generator
from fedmr_flwr.training.sgd import fit

COLOUR, GREY, TEXT = (3, 32, 32), (1, 28, 28), (80,)
# Trainable values and keys of the state_dict, as published; see the models' sources.
SIZES = {
    ("cnn", (1, 8, 8), 10): (13_706, 8),
    ("cnn", GREY, 10): (147_146, 8),
    ("cnn", GREY, 62): (160_510, 8),
    ("cnn", COLOUR, 10): (62_006, 10),
    ("cnn", COLOUR, 20): (62_856, 10),
    ("logistic", GREY, 10): (7_850, 2),
    ("mlp", GREY, 10): (199_210, 6),
    ("resnet20", COLOUR, 10): (269_722, 116),
    ("resnet20-fedmr", COLOUR, 10): (219_482, 119),
    ("resnet20-fedmr", COLOUR, 20): (222_052, 119),
    ("resnet20-fedmr", GREY, 62): (232_558, 119),
    ("resnet18", COLOUR, 10): (11_173_962, 122),
    ("resnet18-groupnorm", COLOUR, 10): (11_173_962, 62),
    ("mobilenet-v2", COLOUR, 10): (2_236_682, 314),
    ("vgg16", COLOUR, 10): (33_646_666, 97),
    ("vgg16", COLOUR, 20): (33_687_636, 97),
    ("vgg-fedmr", GREY, 62): (8_024_958, 14),
    ("charlstm", TEXT, 80): (819_920, 11),
}
CASES = sorted({(name, shape) for name, shape, _ in SIZES})


def inputs(shape, count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if shape == TEXT:
        return torch.randint(0, 7, (count, *shape), generator=generator)
    return torch.rand(count, *shape, generator=generator)


def as_data(tensor, labels):
    """Return inputs that are used as they are, as a data set and its training examples."""
    examples = Examples(tensor, labels)
    return Dataset(examples, examples, 7, None), examples


@pytest.fixture(scope="module")
def built():
    """Return a function that builds each model for ten classes once: to draw the weights takes longest."""
    found = {}

    def build(name, shape):
        if (name, shape) not in found:
            found[name, shape] = models.build(name, shape, 10)
        return found[name, shape]

    yield build
    found.clear()


def test_table_lists_every_model():
    assert {name for name, _, _ in SIZES} == set(models.MODELS)


@pytest.mark.parametrize(("case", "size"), SIZES.items(), ids=str)
def test_published_sizes(case, size):
    model = models.build(*case)
    assert (models.parameter_count(model), len(model.state_dict())) == size


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_forward_is_head_of_features(built, name, shape):
    model = built(name, shape).eval()
    images = inputs(shape)
    logits = model(images)
    assert logits.shape == (3, 10)
    assert torch.equal(logits, model.head(model.features(images)))


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_seed_decides_the_weights(built, name, shape):
    a = built(name, shape)
    b, c = (models.build(name, shape, 10, seed) for seed in (0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    drawn = [x for x in a.parameters() if x.std() > 0]  # not a normalisation's ones and zeros
    assert len(drawn) >= min(6, len([*a.parameters()]))
    others = [y for y in c.parameters() if y.std() > 0]
    assert not any(torch.equal(x, y) for x, y in zip(drawn, others, strict=True))


def test_global_generator_stays_untouched():
    before = torch.get_rng_state()
    models.build("mobilenet-v2", COLOUR, 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_are_pytorchs_default():
    # PyTorch draws weights and biases of a layer from U(-b, b), b = 1 / sqrt(fan in).
    model = models.build("cnn", (1, 28, 28), 10)
    for layer, fan_in in ((model.conv1, 25), (model.conv2, 400), (model.hidden[0], 512), (model.classifier, 256)):
        bound = fan_in**-0.5
        for values in (layer.weight, layer.bias):
            assert float(values.detach().abs().max()) <= bound
        assert float(layer.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_published_resnet_starts_as_published():
    model = models.build("resnet20-fedmr", COLOUR, 10)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == 19 and all((norm.weight == 0.5).all() and not norm.bias.any() for norm in norms)
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    scaled = [c.weight.detach() / (2 / (c.kernel_size[0] ** 2 * c.out_channels)) ** 0.5 for c in convolutions]
    values = torch.cat([weights.flatten() for weights in scaled])
    assert len(convolutions) == 22
    assert float(values.mean()) == pytest.approx(0, abs=0.01)
    assert float(values.std()) == pytest.approx(1, abs=0.01)
    assert float(values.abs().max()) > 4, "normal, not uniform"
    assert float(model.classifier.weight.detach().abs().max()) <= 1 / 16


def test_published_resnet_pools_grey_images(built):
    images = inputs(GREY)
    model = built("resnet20-fedmr", GREY).eval()
    maps = torch.nn.functional.max_pool2d(model.conv(images), 3, 1, 1)
    assert torch.equal(model.features(images), model.stages(maps).mean((2, 3)))
    assert isinstance(built("resnet20-fedmr", COLOUR).pool, torch.nn.Identity)


def test_published_vgg_averages_to_49_pixels():
    model = models.build("vgg-fedmr", GREY, 62)
    before = model.convolutions[:-1](inputs(GREY))
    assert before.shape[1:] == (512, 14, 14)
    published = torch.nn.AdaptiveAvgPool2d((7, 7))(before)
    torch.testing.assert_close(model.convolutions[-1](before), published)


def test_unknown_model_is_refused():
    with pytest.raises(ConfigError, match="unknown model 'resnet'; choose one of charlstm, cnn"):
        models.build("resnet", (1, 28, 28), 10)


def test_unfit_image_shape_is_refused():
    with pytest.raises(ConfigError, match=r"'cnn' is not defined for images of shape \[2, 9, 9\]"):
        models.build("cnn", (2, 9, 9), 10)


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_unfit_examples_are_refused(name):
    shape = COLOUR if name in ("charlstm", "vgg-fedmr") else TEXT
    with pytest.raises(
        ConfigError, match=rf"'{name}' (does not accept examples|is not defined for images)"
    ) as caught:
        models.build(name, shape, 10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["cnn", "resnet20-fedmr", "resnet20", "vgg16", "vgg-fedmr", "resnet18", "mobilenet-v2", "mlp"]
)
def test_image_models_take_grey_images(name):
    assert models.build(name, GREY, 62).training


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_training_changes_every_parameter(name, shape):
    model = models.build(name, shape, 7)
    before = {key: value.clone() for key, value in model.named_parameters()}
    labels = torch.tensor([0, 1, 2, 3])
    training = Training(lr=0.5, local_epochs=1, batch_size=4)
    fit(model, *as_data(inputs(shape, 4), labels), training, np.random.default_rng(0))
    same = {key for key, value in model.named_parameters() if torch.equal(value, before[key])}
    # The published ResNet's last normalisation is there but never used.
    unused = {"bn.weight", "bn.bias"} if name == "resnet20-fedmr" else set()
    assert same - {key for key in same if key.startswith("embedding")} == unused


def test_blocks_name_modules(built):
    for name, shape in CASES:
        model = built(name, shape)
        modules = dict(model.named_modules())
        assert all(block in modules for block in model.blocks)
        if name.startswith(("resnet", "mobilenet")):
            found = units(layout_of(model), "block")
            assert {unit.name for unit in found} > set(model.blocks)


def test_parameter_free_shortcut():
    block = BasicBlock(2, 4, 2, lambda channels: torch.nn.Identity(), project=False)
    for convolution in (block.conv1, block.conv2):
        torch.nn.init.zeros_(convolution.weight)
    maps = torch.arange(32.0).reshape(1, 2, 4, 4)
    out = block(maps)
    assert torch.equal(out[:, :2], maps[:, :, ::2, ::2])
    assert torch.equal(out[:, 2:], torch.zeros(1, 2, 2, 2))


def test_bottleneck_is_preactivated():
    block = Bottleneck(8, 2, 1, project=False)
    torch.nn.init.zeros_(block.conv3.weight)
    maps = -torch.rand(2, 8, 4, 4)
    assert torch.equal(block(maps), maps), "the shortcut goes around everything"


def test_dropout_keeps_the_mean():
    values, own = torch.ones(200, 200), torch.Generator().manual_seed(1)
    with default_generator(own):
        dropped = Dropout(0.25).train()(values)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.01)


def test_dropout_does_nothing_in_evaluation():
    values = torch.ones(2, 3)
    assert torch.equal(Dropout(0.25).eval()(values), values)


def test_dropout_depends_on_the_stream():
    finals = []
    for seed in (1, 1, 2):
        model = models.build("mobilenet-v2", COLOUR, 4)
        training = Training(local_epochs=1, batch_size=4)
        fit(model, *as_data(inputs(COLOUR, 4), torch.tensor([0, 1, 2, 3])), training, stream(seed, "train", 1, 1))
        finals.append(model.classifier.weight.detach().clone())
    assert torch.equal(finals[0], finals[1])
    assert not torch.equal(finals[0], finals[2])


def test_charlstm_has_default_weights():
    model = models.build("charlstm", TEXT, 80)
    assert float(model.embedding.weight.detach().std()) == pytest.approx(1, rel=0.1)
    for weights in model.lstm.parameters():
        assert float(weights.detach().abs().max()) <= 1 / 16
        assert float(weights.detach().std()) == pytest.approx(1 / 16 / 3**0.5, rel=0.1)


def test_vector_of_floats_is_no_text():
    assert models.build("mlp", (5,), 2, text=False)(torch.zeros(3, 5)).shape == (3, 2)
    with pytest.raises(ConfigError, match=r"'charlstm' does not accept .*: it reads characters, not float values"):
        models.build("charlstm", (5,), 2, text=False)
