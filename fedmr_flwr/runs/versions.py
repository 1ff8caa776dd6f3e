"""The versions of the software that a run's result depends on."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("fedmr-flwr", "flwr", "ray", "torch", "triton", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of the installed software that a run's result depends on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):  # a node of a deployment needs no Ray
            found[name] = version(name)
    return found
