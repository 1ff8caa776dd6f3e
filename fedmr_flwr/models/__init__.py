"""Models by name: the networks of this package, and any module of a user's own that maps a batch to logits."""

import importlib
from collections.abc import Callable

import torch
from torch import nn

from fedmr_flwr.core.randomness import stream
from fedmr_flwr.errors import ConfigError, own_place
from fedmr_flwr.models.base import Classifier, drawing_from, redraw
from fedmr_flwr.models.charlstm import CharLSTM
from fedmr_flwr.models.checks import check, only_torch_draws
from fedmr_flwr.models.cnn import cnn
from fedmr_flwr.models.mlp import MLP, Logistic
from fedmr_flwr.models.mobilenet import MobileNetV2
from fedmr_flwr.models.parts import represent
from fedmr_flwr.models.resnet import FedMRResNet, resnet18, resnet18_groupnorm, resnet20
from fedmr_flwr.models.vgg import VGG, FedMRVGG

Builder = Callable[[tuple[int, ...], int], nn.Module]

# Every model, called with the input shape and the number of classes; add one line to add one.
MODELS: dict[str, Builder] = {
    "charlstm": CharLSTM,
    "cnn": cnn,
    "logistic": Logistic,
    "mlp": MLP,
    "mobilenet-v2": MobileNetV2,
    "resnet18": resnet18,
    "resnet18-groupnorm": resnet18_groupnorm,
    "resnet20": resnet20,
    "resnet20-fedmr": FedMRResNet,
    "vgg-fedmr": FedMRVGG,
    "vgg16": VGG,
}


def build(
    name: str,
    input_shape: tuple[int, ...],
    classes: int,
    seed: int = 0,
    initialise: bool | None = None,
    features: str | None = None,
    text: bool | None = None,
) -> nn.Module:
    """Build a model, whose constructor draws from the run's own random stream and not from the global generator.

    Args:
        name: an entry of `MODELS`, or "module:Class" for a user's own model: it is called with the input
            shape and the number of classes, and maps a batch to logits.
        input_shape: of one example: [C, H, W] of a float32 image, [T] of a uint8 text, any of other float32 values.
        classes: number of labels.
        seed: equal seeds give equal weights.
        initialise: whether the weights are drawn from the seed, which is the default for an entry of `MODELS`; if
            not, which is the default for a user's own model, they are those that the constructor leaves.
        features: the path of the module that makes representations, to be checked.
        text: whether an example is a text; None: if its shape has one dimension.

    Returns:
        The model, on the CPU, in training mode.

    Raises:
        ConfigError: the model is unknown, does not accept this input shape, or could not be trained and saved as it
            is.
    """
    own = ":" in name
    if not own and initialise is False:
        raise ConfigError(f"model.initialise: '{name}' has no weights of its own to keep; leave it out")
    check_name(name)
    builder = _import(name) if own else MODELS[name]
    inputs = _examples(tuple(input_shape), len(input_shape) == 1 if text is None else text)

    def make(*index: int) -> nn.Module:
        with drawing_from(stream(seed, "model", *index)), torch.no_grad():
            model = builder(tuple(input_shape), classes)
            if not isinstance(model, nn.Module):
                raise ConfigError(f"is a {type(model).__name__}, expected a torch.nn.Module")
            # Run once, so that a model that does not fit the data ends in one line before the run begins, and layers
            # that wait for their first input have their weights. In evaluation mode, so that BatchNorm's statistics
            # stay as they are and no dropout is drawn.
            logits = model.eval()(inputs)
            if features is not None:
                represent(model, inputs, features)
            if not isinstance(logits, torch.Tensor):
                raise ConfigError(f"returns a {type(logits).__name__}, expected a tensor of logits, [2, {classes}]")
            if logits.shape != (2, classes):
                raise ConfigError(f"returns shape {list(logits.shape)} for two examples, expected [2, {classes}]")
            if own and initialise:
                redraw(model)
            if isinstance(model, Classifier):
                model.initialise(torch.default_generator)
        return model

    try:
        if not own:
            return make().train()
        with only_torch_draws():
            model = make()
            check(model, make(1), inputs)
    except ConfigError as error:
        line = str(error)
        raise ConfigError(line if line.startswith("model.") else f"model.name: '{name}' {line}") from None
    # Whatever the code of a user, or PyTorch on its behalf, raises.
    except Exception as error:
        raise ConfigError(
            f"model.name: '{name}' does not accept examples of shape {list(input_shape)}: {_line(error)}"
        ) from None
    return model.train()


def check_name(name: str) -> None:
    """Check that there is such a model, or that it is named as one of a user's own.

    Raises:
        ConfigError: there is none.
    """
    if name not in MODELS and ":" not in name:
        raise ConfigError(
            f"model.name: unknown model '{name}'; choose one of {', '.join(sorted(MODELS))}, or module:Class"
        )


def _examples(shape: tuple[int, ...], text: bool) -> torch.Tensor:
    """Return two random examples; of a text, its first two characters."""
    with drawing_from(stream(0, "examples")):
        return torch.randint(2, (2, *shape), dtype=torch.uint8) if text else torch.rand(2, *shape)


def _line(error: Exception) -> str:
    # PyTorch's messages can be pages long.
    line = " ".join(str(error).split())[:200] or type(error).__name__
    place = own_place(error)
    return f"{line} ({place})" if place else line


def _import(name: str) -> Builder:
    module, _, attribute = name.partition(":")
    try:
        builder: Builder = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the code of a user's module raises
        raise ConfigError(
            f"model.name: '{name}' cannot be imported: {_line(error)}; it must be in the current folder or on "
            "PYTHONPATH"
        ) from None
    if isinstance(builder, nn.Module) or not callable(builder):
        raise ConfigError(
            f"model.name: '{name}' is a {type(builder).__name__}; name a class, or a function that returns a model"
        )
    return builder


def parameter_count(model: nn.Module) -> int:
    """Return the number of trainable values."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
