"""Models by name. Every model has `features(x)` and `head(z)`, and `forward` returns head(features(x))."""

import importlib
from collections.abc import Callable

import torch
from torch import nn

from fedmr_flwr.core.randomness import stream
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.models.base import Classifier, materialise
from fedmr_flwr.models.charlstm import CharLSTM
from fedmr_flwr.models.cnn import cnn
from fedmr_flwr.models.mlp import MLP
from fedmr_flwr.models.mobilenet import MobileNetV2
from fedmr_flwr.models.resnet import FedMRResNet, resnet18, resnet18_groupnorm, resnet20
from fedmr_flwr.models.vgg import VGG

Builder = Callable[[tuple[int, ...], int], Classifier]

# Every model, called with the input shape and the number of classes; add one line to add one.
MODELS: dict[str, Builder] = {
    "charlstm": CharLSTM,
    "cnn": cnn,
    "mlp": MLP,
    "mobilenet-v2": MobileNetV2,
    "resnet18": resnet18,
    "resnet18-groupnorm": resnet18_groupnorm,
    "resnet20": resnet20,
    "resnet20-fedmr": FedMRResNet,
    "vgg16": VGG,
}


def build(name: str, input_shape: tuple[int, ...], classes: int, seed: int = 0) -> Classifier:
    """Build a model with PyTorch's default initial weights, drawn from the run's own random stream.

    Args:
        name: an entry of `MODELS`, or "module:Class" for a user's own model: it is called with the input
            shape and the number of classes, and must derive from `Classifier`.
        input_shape: of one example: [C, H, W] of a float32 image, [T] of a uint8 text.
        classes: number of labels.
        seed: equal seeds give equal weights.

    Returns:
        The model, on the CPU.

    Raises:
        ConfigError: the model is unknown, or does not accept this input shape.
    """
    builder = _import(name) if ":" in name else MODELS.get(name)
    if builder is None:
        raise ConfigError(
            f"model.name: unknown model '{name}'; choose one of {', '.join(sorted(MODELS))}, or module:Class"
        )
    unfit = f"model.name: '{name}' does not accept examples of shape {list(input_shape)}"

    def make() -> Classifier:
        model = builder(tuple(input_shape), classes)
        if not isinstance(model, Classifier):
            raise ConfigError(f"model.name: '{name}' must derive from fedmr_flwr.models.Classifier")
        return model

    generator = torch.Generator().manual_seed(int(stream(seed, "model").integers(2**63)))
    try:
        model = materialise(make, generator)
        # Run once, so that a model that does not fit the data ends in one line before the run begins.
        found = _output_shape(model, input_shape)
    # From `initialise`: the model has a module without known initial weights.
    except TypeError as error:
        raise ConfigError(f"model.name: '{name}': {_line(error)}") from None
    except (ValueError, IndexError, RuntimeError) as error:
        raise ConfigError(f"{unfit}: {_line(error)}") from None
    if found != (2, classes):
        raise ConfigError(
            f"model.name: '{name}' returns shape {list(found)} for two examples, expected [2, {classes}]"
        )
    return model


@torch.inference_mode()
def _output_shape(model: Classifier, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a model's output for two blank examples."""
    blank = torch.zeros(2, *input_shape, dtype=torch.uint8 if len(input_shape) == 1 else torch.float32)
    # In evaluation mode, so that BatchNorm's statistics stay as initialised and no dropout is drawn.
    found = tuple(model.eval()(blank).shape)
    model.train()
    return found


def _line(error: Exception) -> str:
    # PyTorch's messages can be pages long.
    return " ".join(str(error).split())[:200]


def _import(name: str) -> Builder:
    module, _, attribute = name.partition(":")
    try:
        builder: Builder = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"model.name: '{name}' cannot be imported: {error}; it must be on PYTHONPATH") from None
    return builder


def parameter_count(model: nn.Module) -> int:
    """Return the number of trainable values."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
