"""The versions of the software that a run's result depends on."""

import platform
from collections.abc import Mapping
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


def changed_versions(before: Mapping[str, str]) -> list[str]:
    """Return a line for each package that has another version now.

    Args:
        before: what `versions` returned when a run was started.
    """
    pairs = ((name, before.get(name, now), now) for name, now in versions().items())
    return [f"{name} was {old} and is now {now}" for name, old, now in pairs if old != now]
