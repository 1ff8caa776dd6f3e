"""The section `privacy`: what protects a client's model before it is sent."""

from pydantic import Field

from fedmr_flwr.config.sections import Section


class LocalDp(Section):
    """Local differential privacy of the model that a client returns in one round, with Flower's LocalDpMod.

    The noise on each float has the standard deviation sensitivity sqrt(2 ln(1.25 / delta)) / epsilon.

    Attributes:
        clipping_norm: the longest update that leaves a client; longer ones are scaled to it.
        sensitivity: the largest distance of two models that a client could return: twice clipping-norm, if nothing
            else is known about its data.
        epsilon: the privacy budget of a round; smaller is more private.
        delta: the probability that the budget does not hold.
    """

    clipping_norm: float = Field(gt=0)
    sensitivity: float = Field(gt=0)
    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)


class Privacy(Section):
    """Protection of a client's model before it is sent.

    Attributes:
        local_dp: clip each update and add noise; off unless all four keys are given.
        sealed: of `fedmr` and `indep`: clients seal each unit of their models with a key that the server does not
            have; it deals what it cannot read.
    """

    local_dp: LocalDp | None = None
    sealed: bool = False
