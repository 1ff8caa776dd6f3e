"""Flower's wrappers of strategies; some of them cannot wrap a strategy that sends K individual models."""

import sys
from types import FrameType

from fedmr_flwr.errors import ConfigError

# Prefixes of the names of their classes, and the reason.
UNFIT = {
    "DifferentialPrivacy": (
        "clips updates and adds noise as if all clients had trained one global model; clip each client's own update "
        "with privacy.local-dp, or with Flower's LocalDpMod in your own ClientApp"
    ),
    "SecAgg": "gives the server only a sum, from which no individual models for the clients can be computed",
}


def refuse_unfit(strategy: object) -> None:
    """Check that a strategy's method is not called by a wrapper that would give wrong results without an error.

    Args:
        strategy: one that sends K individual models.

    Raises:
        ConfigError: it is.
    """
    # Flower does not pass the wrapper to a strategy, and nothing that the strategy receives shows it: only the
    # stack does.
    frame: FrameType | None = sys._getframe(1)
    while frame and frame.f_locals.get("self") is strategy:
        frame = frame.f_back
    kinds = [kind.__name__ for kind in type(frame.f_locals.get("self")).__mro__] if frame else []
    for beginning, why in UNFIT.items():
        if any(name.startswith(beginning) for name in kinds):
            raise ConfigError(f"{kinds[0]} cannot be used with {type(strategy).__name__}: it {why}")
