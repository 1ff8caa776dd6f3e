"""BatchNorm in local training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@contextmanager
def single_values_allowed(model: nn.Module) -> Iterator[None]:
    """Let BatchNorm normalise by its running statistics inside the block where a channel has a single value.

    That is the case for a batch of one example, unless it has several pixels there. Normalised by itself the value
    would be zero, so PyTorch refuses it, and a client whose last batch has one example could never take part.
    """
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    modes = [norm.training for norm in norms]

    def before(norm: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if given[0].numel() == given[0].shape[1]:
            norm.eval()

    handles = [norm.register_forward_pre_hook(before) for norm in norms]
    try:
        yield
    finally:
        for norm, handle, mode in zip(norms, handles, modes, strict=True):
            handle.remove()
            norm.train(mode)


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Let BatchNorm normalise by the batch inside the block without updating its statistics."""
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    tracked = [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm, before in zip(norms, tracked, strict=True):
            norm.track_running_stats = before
