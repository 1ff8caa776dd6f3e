"""The optimisers of local training, PyTorch's own."""

from collections.abc import Iterable

import numpy as np
import torch

from fedmr_flwr.config.training import Training


def create(
    weights: Iterable[torch.Tensor], training: Training, device: torch.device, resident: bool = False
) -> torch.optim.Optimizer:
    """Create the optimiser of a training.

    Args:
        weights: to change, on the device.
        training: which optimiser, with its options.
        device: of the weights.
        resident: whether steps are captured: a learning rate that differs between rounds must be in a tensor.
    """
    lr: float | torch.Tensor = training.lr
    if resident and training.varies:
        # The kernels of a GPU read a rate in single precision, those of a CPU in double.
        lr = torch.tensor(lr, dtype=torch.float32 if device.type == "cuda" else torch.float64, device=device)
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            weights, lr, training.momentum, weight_decay=training.weight_decay, nesterov=training.nesterov, fused=True
        )
    kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return kind(
        weights, lr, training.betas, weight_decay=training.weight_decay, fused=True, capturable=device.type == "cuda"
    )


def restart(optimizer: torch.optim.Optimizer, training: Training, device: torch.device) -> None:
    """Prepare an optimiser for the next client: a state of zeros in the same tensors, and the round's learning rate.

    Args:
        optimizer: what `create` returned, perhaps used.
        training: of the client in its round.
        device: of the weights.
    """
    # In place, because a captured step knows its tensors by their addresses.
    used = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    if used:
        torch._foreach_zero_(used)
    if not training.varies:
        return
    # Rounded where a captured step reads it from a tensor in single precision, so that every engine has the same.
    rate = float(np.float32(training.lr)) if device.type == "cuda" else training.lr
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
