"""Feature skew: each client's images are changed in a way of its own, drawn from the seed."""

import numpy as np
import torch

from fedmr_flwr.config.partition import Partition
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.errors import ConfigError


def check(dataset: Dataset, partition: Partition) -> None:
    """Check that a skew fits the data.

    Raises:
        ConfigError: the examples are no images, or grey ones shall get colours.
    """
    if partition.skew is None:
        return
    if dataset.normalisation is None or len(dataset.input_shape) != 3:
        raise ConfigError(f"partition.skew: {partition.skew} is for uint8 images, which these data are not")
    if partition.skew == "colour" and dataset.input_shape[0] == 1:
        raise ConfigError("partition.skew: colour is for images in colour, but these are grey; choose another one")


def of_client(examples: Examples, dataset: Dataset, partition: Partition, seed: int, client: int) -> Examples:
    """Return a client's examples with the client's change.

    Args:
        examples: of the client, on the CPU, so that every engine computes the same bytes.
        dataset: to which they belong.
        partition: with the kind of the skew and its strength.
        seed: of the run.
        client: its number.
    """
    if partition.skew is None or not len(examples):
        return examples
    assert dataset.normalisation is not None
    rng, strength = stream(seed, "skew", client), partition.skew_strength
    white, images = dataset.normalisation.white, examples.inputs
    kinds = ("blur", "brightness", "colour") if partition.skew == "source" else (partition.skew,)
    for kind in kinds:
        # From -strength to strength; drawn for each kind, also where it does nothing.
        drawn = strength * rng.uniform(-1, 1, 3)
        if kind == "rotation":
            from torchvision.transforms.v2 import functional  # imports PyTorch's compiler, which takes seconds

            turned = functional.InterpolationMode.BILINEAR
            images = functional.rotate(images, 180 * drawn[0], turned, fill=[float(dataset.background)])
        elif kind == "blur":
            images = _blurred(images, abs(float(drawn[0])))
        elif kind == "brightness":
            images = _scaled(images, np.full(1, 4 ** drawn[0]), white)
        elif images.shape[1] == 3:
            images = _scaled(images, 4**drawn, white)
    return Examples(images, examples.labels)


def of_all(dataset: Dataset, parts: list[np.ndarray], partition: Partition, seed: int) -> Examples:
    """Return the training examples of a data set, each with the change of the client that has it.

    Args:
        dataset: the data set.
        parts: the indices of each client.
        partition: with the kind of the skew and its strength.
        seed: of the run.
    """
    if partition.skew is None:
        return dataset.train
    inputs = dataset.train.inputs.clone()
    for client, part in enumerate(parts):
        own = dataset.train.select(part, torch.device("cpu"))
        inputs[torch.from_numpy(part)] = of_client(own, dataset, partition, seed, client).inputs
    return Examples(inputs, dataset.train.labels)


def _scaled(images: torch.Tensor, factors: np.ndarray, white: float) -> torch.Tensor:
    """Multiply the channels of uint8 images, at most to white."""
    by_channel = torch.tensor(factors, dtype=torch.float32)[:, None, None]
    return (images * by_channel).clamp(0, white).round().to(torch.uint8)


def _blurred(images: torch.Tensor, strength: float) -> torch.Tensor:
    """Blur by a Gaussian of at most an eighth of the images' height."""
    sigma = strength * images.shape[2] / 8
    reach = min(int(3 * sigma + 0.5), min(images.shape[2:]) - 1)  # no farther than the border's mirror image
    if not reach:
        return images
    from torchvision.transforms.v2 import functional  # imports PyTorch's compiler, which takes seconds

    blurred: torch.Tensor = functional.gaussian_blur(images, [2 * reach + 1] * 2, [sigma] * 2)
    return blurred
