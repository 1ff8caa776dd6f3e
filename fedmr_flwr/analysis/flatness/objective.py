"""The loss of a network as a function of its weights, with its first two derivatives."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.models.base import duplicate

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

# Examples per step: the graph of a second derivative keeps every activation twice.
_BATCH = 250


class Objective:
    """The mean cross-entropy of a network over fixed examples, as a function of its trainable parameters.

    The network is in evaluation mode: BatchNorm uses its running statistics, which do not change.

    Args:
        model: the network; a copy is used.
        dataset: defines how inputs are prepared.
        examples: the examples.
        device: of the computation. On a GPU it is in float64, which has no kernels of our own: they cannot be
            differentiated twice.

    Attributes:
        size: P, the number of trainable values; vectors have the order of `model.parameters()`.
    """

    def __init__(self, model: nn.Module, dataset: Dataset, examples: Examples, device: torch.device) -> None:
        self._dtype = torch.float32 if device.type == "cpu" else torch.float64
        self._model = duplicate(model).eval().to(device, self._dtype)
        self._dataset = dataset
        self._examples = examples.to(device)
        self._parameters = [own for own in self._model.parameters() if own.requires_grad]
        self._start = [own.detach().clone() for own in self._parameters]
        self.size = sum(own.numel() for own in self._parameters)

    @property
    def weights(self) -> Vector:
        """[P], the network's own weights."""
        return _flat(self._start)

    @torch.no_grad()
    def loss(self, step: Vector | None = None) -> float:
        """Return the loss at the network's weights, or at weights + step, [P]."""
        if step is None:
            return self._loss()
        for own, start, change in zip(self._parameters, self._start, self._split(step), strict=True):
            own.copy_(start + change)
        try:
            return self._loss()
        finally:
            for own, start in zip(self._parameters, self._start, strict=True):
                own.copy_(start)

    def gradient(self) -> Vector:
        """Return the gradient, [P]."""
        total = np.zeros(self.size)
        for loss in self._losses():
            total += _flat(torch.autograd.grad(loss, self._parameters))
        return total

    def products(self, vectors: Matrix) -> Matrix:
        """Return the Hessian's product with each row of a matrix [N, P], as [N, P]."""
        total = np.zeros(vectors.shape)
        for loss in self._losses():
            # One graph for all vectors: making it costs about as much as a product.
            slopes = torch.autograd.grad(loss, self._parameters, create_graph=True)
            for row, vector in enumerate(vectors):
                # Not every gradient depends on a weight: that of a linear layer's bias in a linear model.
                product = torch.autograd.grad(
                    slopes, self._parameters, self._split(vector), retain_graph=True, materialize_grads=True
                )
                total[row] += _flat(product)
        return total

    def _loss(self) -> float:
        return float(sum(loss.item() for loss in self._losses()))

    def _losses(self) -> Iterator[torch.Tensor]:
        """Yield each batch's share of the mean loss."""
        count = len(self._examples)
        for start in range(0, count, _BATCH):
            inputs = self._dataset.prepare(self._examples.inputs[start : start + _BATCH])
            if inputs.is_floating_point():
                inputs = inputs.to(self._dtype)
            labels = self._examples.labels[start : start + _BATCH]
            yield functional.cross_entropy(self._model(inputs), labels, reduction="sum") / count

    def _split(self, vector: Vector) -> list[torch.Tensor]:
        """Divide a vector [P] into tensors like the parameters."""
        whole = torch.from_numpy(vector).to(self._parameters[0])
        pieces = torch.split(whole, [own.numel() for own in self._parameters])
        return [piece.view_as(own) for piece, own in zip(pieces, self._parameters, strict=True)]


def _flat(tensors: list[torch.Tensor] | tuple[torch.Tensor, ...]) -> Vector:
    return np.concatenate([tensor.detach().reshape(-1).cpu().numpy().astype(np.float64) for tensor in tensors])
