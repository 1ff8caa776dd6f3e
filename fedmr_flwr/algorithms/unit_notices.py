"""What FedMR tells a user about units of recombination that may not be what was meant."""

import logging
from collections.abc import Sequence

from fedmr_flwr.algorithms.contract import Slot
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.core.units import Spec, Unit, format_unit, has_modules, ties

# Flower's, which shows lines at this level.
_log = logging.getLogger("flwr")


def nothing_to_recombine(layout: Layout, spec: Spec, units: Sequence[Unit]) -> str | None:
    """Return a line for the user if the whole model is one unit.

    Args:
        layout: of the models.
        spec: the option `unit`.
        units: those that it makes of the layout.
    """
    if len(units) > 1:
        return None
    other = "; choose another unit, such as 'tensor'" if len(layout.entries) > 1 else ""
    return (
        f"unit '{format_unit(spec)}' makes one unit of this model: whole models are permuted, and nothing is "
        f"recombined{other}"
    )


def tell_of_unnamed_units(layout: Layout, units: Sequence[Unit]) -> None:
    """Tell the user what a layer is in a model whose arrays have no names of modules."""
    if not has_modules(layout):
        _log.info(
            "the %d arrays have no names of modules: each is a unit, a weight with the bias that follows it (%d "
            "units)",
            len(layout.entries), len(units),
        )  # fmt: skip


def warn_of_separate_ties(layout: Layout, units: Sequence[Unit], slots: Sequence[Slot]) -> None:
    """Warn the user if two names of one weight would be shuffled apart.

    Args:
        layout: of the models.
        units: of recombination.
        slots: those with a good reply, at least one, all of which were sent the same model.
    """
    unit_of = {key: unit for unit in units for key in unit.keys}
    models = [slot.reply.model for slot in slots if slot.reply]
    apart = [(one, two) for one, two in ties(layout, slots[0].sent, models) if unit_of[one] is not unit_of[two]]
    if apart:
        more = f", and {len(apart) - 1} more pairs," if len(apart) > 1 else ""
        _log.warning(
            "'%s' and '%s'%s are equal at every client, so one tied weight, but in units of their own: clients "
            "get the one and the other from different models; put both into one pattern of unit",
            *apart[0], more,
        )  # fmt: skip
