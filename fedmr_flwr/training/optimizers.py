"""The optimisers of local training: PyTorch's steps, with a state that begins anew for each client."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from fedmr_flwr.config.training import Training

# Of `torch.optim.Adam`.
_EPS = 1e-8


class Optimizer:
    """Changes weights as `torch.optim.SGD`, `Adam` and `AdamW` do, to the same bits but for the sign of a zero.

    Not these classes themselves: the first one that a process makes imports PyTorch's compiler, which takes longer
    than the training of many a client.

    Args:
        weights: to change.
        training: which optimiser, with its options.
        captured: whether steps are captured on a GPU: a rate that differs between rounds must be in a tensor.
    """

    def __init__(self, weights: Iterable[torch.Tensor], training: Training, captured: bool = False) -> None:
        self._weights, self._training = list(weights), training
        device = self._weights[0].device
        self._on_gpu = device.type == "cuda"
        self._rate: float | torch.Tensor = training.lr
        if captured and training.varies:
            # The kernels of a GPU read a rate in single precision, those of a CPU in double.
            kind = torch.float32 if self._on_gpu else torch.float64
            self._rate = torch.tensor(training.lr, dtype=kind, device=device)
        # Of each weight from its first gradient on, so that frozen ones take no memory; then in the same tensors for
        # all clients, because a captured step knows them by their addresses.
        self._means: dict[int, torch.Tensor] = {}
        self._squares: dict[int, torch.Tensor] = {}
        self._counts: dict[int, torch.Tensor] = {}

    def restart(self, training: Training) -> None:
        """Begin with the next client.

        Args:
            training: of this client in its round, with its learning rate.
        """
        if state := [*self._means.values(), *self._squares.values(), *self._counts.values()]:
            torch._foreach_zero_(state)
        if not training.varies:
            return
        # Rounded where a captured step reads it from a tensor in single precision, so that every engine has the same.
        rate = float(np.float32(training.lr)) if self._on_gpu else training.lr
        if isinstance(self._rate, torch.Tensor):
            self._rate.fill_(rate)
        else:
            self._rate = rate

    @torch.no_grad()
    def step(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Change the weights.

        Args:
            gradients: of each weight; None leaves it as it is.
        """
        used = [at for at, gradient in enumerate(gradients) if gradient is not None]
        known = [gradient for gradient in gradients if gradient is not None]
        weights, training = [self._weights[at] for at in used], self._training
        if training.optimizer == "sgd":
            momenta = self._of(used, self._means) if training.momentum else [None] * len(used)
            sgd(
                weights, known, [*momenta], fused=True, weight_decay=training.weight_decay,
                momentum=training.momentum, lr=self._rate, dampening=0, nesterov=training.nesterov, maximize=False,
            )  # fmt: skip
            return
        means, squares = self._of(used, self._means), self._of(used, self._squares)
        for at in set(used) - set(self._counts):
            # In single precision, as the kernel of a GPU reads it, whatever PyTorch's default type is.
            self._counts[at] = torch.zeros((), dtype=torch.float32, device=self._weights[at].device)
        counts = [self._counts[at] for at in used]
        update = adam if training.optimizer == "adam" else adamw
        update(
            weights, known, means, squares, [], counts, fused=True, capturable=self._on_gpu, amsgrad=False,
            beta1=training.betas[0], beta2=training.betas[1], lr=self._rate, weight_decay=training.weight_decay,
            eps=_EPS, maximize=False,
        )  # fmt: skip

    def _of(self, used: Iterable[int], state: dict[int, torch.Tensor]) -> list[torch.Tensor]:
        """Return the state of some weights, zeros at first."""
        for at in set(used) - set(state):
            state[at] = torch.zeros_like(self._weights[at])
        return [state[at] for at in used]
