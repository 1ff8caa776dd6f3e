"""The section `training`, and the precision of arithmetic."""

from typing import Literal

from pydantic import Field

from fedmr_flwr.config.sections import Section

Precision = Literal["float32", "tf32", "bf16"]


class Training(Section):
    """Local training: SGD on the client's own data.

    Attributes:
        lr: learning rate.
        momentum: of SGD; reset to zero in every round.
        local_epochs: passes over the client's data in a round.
        batch_size: examples in a step; the last batch of an epoch may be smaller.
        augment: whether to shift each image by up to an eighth of its size and to flip half of the images,
            differently in each epoch.
    """

    lr: float = Field(0.01, gt=0)
    # Below 1: at 1 the steps would grow without limit, and SCAFFOLD divides by the difference.
    momentum: float = Field(0.5, ge=0, lt=1)
    local_epochs: int = Field(5, ge=1)
    batch_size: int = Field(50, ge=1)
    augment: bool = False
