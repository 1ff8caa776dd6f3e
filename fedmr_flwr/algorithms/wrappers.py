"""Flower's wrappers around strategies, of which some cannot work around one that sends K individual models."""

import sys
from types import FrameType

from fedmr_flwr.errors import ConfigError

# How the names of their classes begin, and why they cannot.
UNFIT = {
    "DifferentialPrivacy": (
        "clips updates and adds noise as if all clients had trained one global model; clip each client's own with "
        "privacy.local-dp, or with Flower's LocalDpMod in a ClientApp of your own"
    ),
    "SecAgg": "shows the server nothing but a sum, of which no model of its own can be made for each client",
}


def refuse_unfit(strategy: object) -> None:
    """Insist that a method of a strategy is not called by a wrapper that would be wrong without saying so.

    A strategy is not told of its wrapper, so it looks at who calls.

    Args:
        strategy: one that sends K individual models.

    Raises:
        ConfigError: it is called by one.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame and frame.f_locals.get("self") is strategy:
        frame = frame.f_back
    kinds = [kind.__name__ for kind in type(frame.f_locals.get("self")).__mro__] if frame else []
    for beginning, why in UNFIT.items():
        if any(name.startswith(beginning) for name in kinds):
            raise ConfigError(f"{kinds[0]} cannot be used with {type(strategy).__name__}: it {why}")
