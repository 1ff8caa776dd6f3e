"""What a server that cannot read its models cannot do."""

from collections.abc import Mapping
from typing import Any

# They only move units between models, which needs no key.
SEALABLE = ("fedmr", "indep")
# The keys for which a server has to read models, with the value at which it need not; None always is one.
_READING: Mapping[str, Any] = {
    "guard": 0.0,
    "keep-models": [],
    "strategy.first-stage-rounds": 0,
    "strategy.buffers": "move",
    "strategy.evaluate-slots": False,
    "evaluation.train": "never",
    "evaluation.classes": "never",
}


def sealed_problem(values: Mapping[str, Any]) -> str | None:
    """Return why a run cannot be sealed, in one line; None if it can.

    Args:
        values: its configuration as nested plain values.
    """
    name = values["strategy"]["name"]
    if name not in SEALABLE:
        return (
            f"privacy.sealed: strategy.name={name} computes with models, which a server cannot do with sealed ones; "
            f"choose {' or '.join(SEALABLE)}"
        )
    if values["engine"] == "gpu":
        return "privacy.sealed: with engine=gpu nothing leaves the GPU that could be sealed; choose another engine"
    for key, without in _READING.items():
        section, _, last = key.rpartition(".")
        value = (values[section] if section else values).get(last)
        if value not in (without, None):
            return f"privacy.sealed: the server cannot read the models, which {key} needs; leave one of them out"
    return None
