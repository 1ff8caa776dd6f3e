"""Models by name. Every model has `features(x)` and `head(z)`, and `forward` is head of features."""

from collections.abc import Callable

import torch
from torch import nn

from fedmr_flwr.errors import ConfigError
from fedmr_flwr.models.base import Classifier, initialise
from fedmr_flwr.models.cnn import cnn
from fedmr_flwr.randomness import stream

# A model is a function of the input shape and the number of classes; add one line to add one.
MODELS: dict[str, Callable[[tuple[int, ...], int], Classifier]] = {"cnn": cnn}


def build(name: str, input_shape: tuple[int, ...], classes: int, seed: int = 0) -> Classifier:
    """Build a model with PyTorch's default initial weights, drawn from the run's own random stream.

    Args:
        name: an entry of `MODELS`.
        input_shape: [C, H, W] of one example.
        classes: number of labels.
        seed: equal seeds give equal weights.

    Returns:
        The model, on the CPU.

    Raises:
        ConfigError: there is no such model, or not for this input shape.
    """
    if name not in MODELS:
        raise ConfigError(f"model.name: '{name}' is not known; choose one of {', '.join(sorted(MODELS))}")
    # On the meta device the constructors draw nothing, so the global generator stays untouched.
    with torch.device("meta"):
        model = MODELS[name](tuple(input_shape), classes)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(int(stream(seed, "model").integers(2**63)))
    initialise(model, generator)
    return model


def parameter_count(model: nn.Module) -> int:
    """Return the number of trainable values."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
