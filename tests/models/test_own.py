"""Models of a user's own: any module that maps a batch to logits, with the weights that it has."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from fedmr_flwr import models
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.models.base import Classifier
from fedmr_flwr.models.packing import layout_of, pack, tensors_of, unpack

SHAPE = (1, 4, 4)


class Plain(nn.Module):
    """A network without anything of this package."""

    def __init__(self, shape, classes):
        super().__init__()
        self.body, self.last = nn.Linear(16, 8), nn.Linear(8, classes)

    def forward(self, images):
        return self.last(torch.relu(self.body(images.flatten(1))))


class Loaded(Plain):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.load_state_dict({name: torch.full_like(t, 0.25) for name, t in self.state_dict().items()})


class Tied(Plain):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.again = nn.Linear(16, 8)
        self.again.weight = self.body.weight

    def forward(self, images):
        return super().forward(images) + self.last(self.again(images.flatten(1)))


class Twice(Plain):
    """A layer under two names."""

    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.alias = self.body


class Embedded(Plain):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.embedding = nn.Embedding(5, 16, padding_idx=0)

    def forward(self, images):
        return super().forward(images.flatten(1) + self.embedding(torch.ones(len(images), dtype=torch.long)))


def wrapped(wrap):
    def make(shape, classes):
        model = Plain(shape, classes)
        wrap(model.body)
        return model

    return make


class Lazy(Plain):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.body = nn.LazyLinear(8)


class Attention(Plain):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.attention = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def forward(self, images):
        return super().forward(self.attention(images[:, 0]))


class Blocks(Classifier):
    """Modules under the names that `Classifier` declares."""

    def __init__(self, shape, classes):
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU())
        self.blocks = nn.ModuleList([nn.Linear(8, 8)])
        self.head = nn.Linear(8, classes)

    def forward(self, images):
        found = self.features(images)
        for block in self.blocks:
            found = block(found)
        return self.head(found)


class InTwo(Classifier):
    def __init__(self, shape, classes):
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, classes))


class ByHook(InTwo):
    def initialise(self, generator):
        nn.init.normal_(self.head[0].weight, generator=generator)
        nn.init.zeros_(self.head[1].weight)


class Sampling(Plain):
    """Draws in evaluation, too."""

    def forward(self, images):
        return super().forward(nn.functional.dropout(images, 0.5, training=True))


ORDINARY = {
    "plain": Plain,
    "loaded": Loaded,
    "tied": Tied,
    "twice": Twice,
    "embedding": Embedded,
    "weight norm": wrapped(parametrizations.weight_norm),
    "spectral norm": wrapped(parametrizations.spectral_norm),
    "orthogonal": wrapped(parametrizations.orthogonal),
    "old spectral norm": wrapped(nn.utils.spectral_norm),
    "pruned": wrapped(lambda layer: prune.random_unstructured(layer, "weight", 0.5)),
    "lazy": Lazy,
    "attention": Attention,
    "blocks": Blocks,
    "in two": InTwo,
    "by hook": ByHook,
    "sampling": Sampling,
    "sequential": lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(16, classes)),
}


@pytest.fixture
def build(monkeypatch):
    """Return a function that builds a model by its class, as a user's own."""

    def made(own, seed=0, **options):
        monkeypatch.setattr(models, "_import", lambda name: own)
        return models.build("mine:Own", SHAPE, 3, seed, **options)

    return made


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ORDINARY)
def test_state_dict_loads_back(build, name):
    model = build(ORDINARY[name], seed=1)
    layout = layout_of(model)
    moved = pack(model, layout)
    moved.floats[...] += 0.125
    unpack(moved, layout, model)
    fresh = ORDINARY[name](SHAPE, 3)
    if name == "lazy":
        fresh(torch.zeros(2, *SHAPE))
    fresh.load_state_dict(model.state_dict())
    images = torch.rand(2, *SHAPE)
    outputs = []
    for each in (model, fresh):
        torch.manual_seed(0)
        outputs.append(each.eval()(images))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", ORDINARY)
def test_seed_decides_what_is_drawn(build, name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a = build(ORDINARY[name], seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    b, c = (build(ORDINARY[name], seed) for seed in (1, 2))
    assert a.training and equal(a, b) and equal(a, c) == (name == "loaded")


def test_own_weights_are_kept(build):
    model = build(Loaded)
    assert all((values == 0.25).all() for values in model.parameters())


def test_hook_has_the_last_word(build):
    model = build(ByHook)
    assert not model.head[1].weight.any() and model.head[0].weight.std() > 0.5


@pytest.mark.parametrize("name", ["tied", "twice"])
def test_tied_weights_are_one_parameter(build, name):
    model = build(ORDINARY[name])
    layout = layout_of(model)
    assert sum(part.stop - part.start for part in layout.parameters) == sum(p.numel() for p in model.parameters())
    assert [entry.name for entry in layout.entries][:2] == ["body.weight", "body.bias"]
    assert len(tensors_of(model)) < len(model.state_dict())


def test_padding_row_is_zero(build):
    for options in ({}, {"initialise": True}):
        assert not build(Embedded, **options).embedding.weight[0].any()


def test_mask_is_kept(build):
    assert build(ORDINARY["pruned"]).body.weight_mask.mean() == 0.5


@pytest.mark.parametrize("own", [Loaded, Embedded, Attention, Tied, InTwo])
def test_initialise_draws_from_the_seed(build, own):
    a, b, c = (build(own, seed, initialise=True) for seed in (1, 1, 2))
    assert equal(a, b) and not equal(a, c) and not equal(a, build(own, 1))
    bound = 16**-0.5
    if own is Loaded:
        assert a.body.weight.abs().max() <= bound
        assert a.body.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)


def test_drawn_attention_has_pytorchs_default(build):
    # PyTorch sets the biases of attention to zero after its inner layer has drawn one.
    assert not build(Attention, initialise=True).attention.self_attn.out_proj.bias.any()


class Odd(Plain):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.scale = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    ("own", "parameter"),
    [
        (Odd, "scale"),
        (ORDINARY["weight norm"], "body.parametrizations.weight.original0"),
        (ORDINARY["pruned"], "body.weight_orig"),
        (ORDINARY["old spectral norm"], "body.weight_orig"),
    ],
)
def test_weights_that_nothing_draws_are_refused(build, own, parameter):
    assert build(own)
    with pytest.raises(ConfigError, match=f"reset_parameters.* sets '{parameter}'"):
        build(own, initialise=True)


def test_built_in_weights_are_drawn():
    assert equal(models.build("mlp", SHAPE, 3, 1), models.build("mlp", SHAPE, 3, 1, initialise=True))
    with pytest.raises(ConfigError, match="model.initialise: 'mlp' has no weights of its own to keep"):
        models.build("mlp", SHAPE, 3, initialise=False)


class Hidden(Plain):
    """Random numbers that are not saved."""

    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.noise = torch.rand(16)

    def forward(self, images):
        return super().forward(images.flatten(1) * self.noise)


class Counting(Plain):
    """Training changes what is not saved."""

    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.register_buffer("steps", torch.zeros(1), persistent=False)

    def forward(self, images):
        if self.training:
            self.steps += 1
        return super().forward(images)


class PythonDraws(Plain):
    def forward(self, images):
        return super().forward(images) * (1 + random.random() * self.training)


class NumPyDraws(Plain):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.last.bias.data = torch.from_numpy(np.random.rand(classes).astype(np.float32))  # noqa: NPY002


class SharedMemory(Plain):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.again = nn.Linear(16, 8)
        self.again.weight.data = self.body.weight.data


class Expanded(Plain):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.scale = nn.Parameter(torch.ones(1).expand(4))


class ExtraState(Plain):
    def get_extra_state(self):
        return {"note": 1}

    def set_extra_state(self, state):
        pass


class Untyped(Plain):
    def forward(self, images):
        return {"logits": super().forward(images)}


class Broken(Plain):
    def forward(self, images):
        return super().forward(images) + self.nothing


class BrokenInTraining(Plain):
    def forward(self, images):
        return {}["key"] if self.training else super().forward(images)


class InPlace(Plain):
    def forward(self, images):
        return super().forward(images.clamp_(0, 1))


class Probabilities(Plain):
    def forward(self, images):
        return super().forward(images).softmax(1)


class Detached(Plain):
    def forward(self, images):
        return super().forward(images).detach()


class Forgetful(Plain):
    """Keeps what it has seen beside its state_dict."""

    seen = 0

    def forward(self, images):
        self.seen += len(images)
        return super().forward(images) * self.seen


class Infinite(Plain):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.body.bias.data[0] = torch.inf


class Sparse(Plain):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.table = nn.Embedding(4, classes, sparse=True)

    def forward(self, images):
        return super().forward(images) + self.table(torch.zeros(len(images), dtype=torch.long))


WRONG = {
    InPlace: "changes its examples in place",
    Probabilities: "returns probabilities, expected logits",
    Detached: "returns logits without gradients in training",
    Forgetful: "answers the same examples otherwise when it is asked again",
    Infinite: "begins with NaN or infinite values in 'body.bias'",
    Sparse: "has sparse gradients of 'table.weight'",
    Hidden: "answers otherwise than a new model with its state_dict",
    Counting: "training changes the buffer 'steps'",
    PythonDraws: "draws from the global generator of Python's random",
    NumPyDraws: "draws from the global generator of Python's random or of NumPy",
    SharedMemory: "'(body|again).weight' and '(body|again).weight' share memory but are two tensors",
    Expanded: "'scale' has several values in the same memory",
    ExtraState: "cannot be sent: '_extra_state' of its state_dict is of type dict, not a tensor",
    Untyped: r"returns a dict, expected a tensor of logits, \[2, 3\]",
    Broken: r"does not accept examples of shape \[1, 4, 4\]: 'Broken' object has no attribute 'nothing'",
    BrokenInTraining: "does not accept examples .*'key'",
    lambda shape, classes: Plain(shape, classes - 1): r"returns shape \[2, 2\] for two examples, expected \[2, 3\]",
    lambda shape, classes: nn.Linear(2, 2): "mat1 and mat2 shapes cannot be multiplied",
    lambda shape, classes: Plain(shape, classes).requires_grad_(False): "has no parameters to train",
    lambda shape, classes: Plain(shape, classes).bfloat16(): r"does not accept examples",
    lambda shape, classes: 5: "is a int, expected a torch.nn.Module",
    lambda: Plain(SHAPE, 3): "takes 0 positional arguments but 2 were given",
}


@pytest.mark.parametrize(("own", "words"), WRONG.items(), ids=lambda value: getattr(value, "__name__", "")[:20])
def test_wrong_model_is_one_line(build, own, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build(own)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("model.name: 'mine:Own' ")


def test_frozen_weights_are_no_weights_of_training(build):
    def frozen(shape, classes):
        model = Plain(shape, classes)
        model.body.requires_grad_(False)
        return model

    layout = layout_of(build(frozen))
    sizes = {entry.name: entry.columns.stop - entry.columns.start for entry in layout.entries}
    assert layout.trainable == sizes["last.weight"] + sizes["last.bias"]
    assert [part.stop - part.start for part in layout.frozen] == [sizes["body.weight"], sizes["body.bias"]]
    assert layout.buffers == ()


OWN = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, shape, classes):
        super().__init__(nn.Flatten(), nn.Linear(16, classes))

net = Net((1, 4, 4), 3)
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_models:Nothing", "cannot be imported: module 'my_models' has no attribute"),
        ("my_models:net", "is a Net; name a class, or a function that returns a model"),
        ("my_models:nn", "is a module; name a class"),
        (
            "nowhere:Model",
            "cannot be imported: No module named 'nowhere'; it must be in the current folder or on",
        ),
        ("unreadable:Model", "cannot be imported: .*invalid syntax"),
        (":Model", "cannot be imported"),
    ],
)
def test_wrong_name_is_refused(tmp_path, monkeypatch, name, words):
    (tmp_path / "my_models.py").write_text(OWN)
    (tmp_path / "unreadable.py").write_text("a b")
    monkeypatch.syspath_prepend(tmp_path)
    assert models.build("my_models:Net", SHAPE, 3)(torch.zeros(2, *SHAPE)).shape == (2, 3)
    with pytest.raises(ConfigError, match=words):
        models.build(name, SHAPE, 3)
