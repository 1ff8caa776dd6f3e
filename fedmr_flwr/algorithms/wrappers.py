"""Flower's wrappers of strategies; some of them cannot wrap a strategy that sends K individual models."""

import sys
from types import FrameType

from fedmr_flwr.errors import ConfigError

# Prefixes of the names of their classes, and the reason.
UNFIT = {
    "DifferentialPrivacy": (
        "clips and adds noise as if all clients had trained one model, the new one were the mean of theirs, and "
        "they returned nothing else; clip each client's own update with privacy.local-dp, or with Flower's "
        "LocalDpMod in your own ClientApp"
    ),
    "SecAgg": "gives the server only a sum, from which no individual models for the clients can be computed",
}


def refuse_unfit(strategy: object) -> None:
    """Check that a strategy's method is not called by a wrapper that would give wrong results without an error.

    Args:
        strategy: one that does more than to average what all clients made of one model.

    Raises:
        ConfigError: it is.
    """
    # Flower does not pass the wrapper to a strategy, and nothing that the strategy receives shows it: only the
    # stack does. To its end, because a wrapper may itself be wrapped.
    frame: FrameType | None = sys._getframe(1)
    while frame:
        kinds = [kind.__name__ for kind in type(frame.f_locals.get("self")).__mro__]
        for beginning, why in UNFIT.items():
            if any(name.startswith(beginning) for name in kinds):
                raise ConfigError(f"{kinds[0]} cannot be used with {type(strategy).__name__}: it {why}")
        frame = frame.f_back
