"""How much each client counts: by its number of examples, or as much as any other.

Every algorithm has the option `weighting`, with the default of its paper or, where the two differ, of its published
code; the reason is in the docstring of its options.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr.algorithms.contract import Round, Slot
from fedmr_flwr.core.layout import Packed
from fedmr_flwr.core.population import average
from fedmr_flwr.errors import ConfigError

Weighting = Literal["examples", "uniform"]


def weights(examples: Sequence[float], weighting: Weighting) -> list[float]:
    """Return the weight of each model, not normalised.

    Args:
        examples: the number of examples that each model was trained on.
        weighting: the option.
    """
    return list(examples) if weighting == "examples" else [1.0] * len(examples)


def weighted_mean(slots: Sequence[Slot], weighting: Weighting) -> Packed:
    """Average the trained models; integer buffers take the elementwise maximum."""
    good = [slot.reply for slot in slots if slot.reply]
    return average([reply.model for reply in good], weights([reply.examples for reply in good], weighting))


def client_weights(round: Round, weighting: Weighting) -> NDArray[np.int64]:
    """Return the weight of every client of the federation, drawn or not, [N], not normalised.

    Raises:
        ConfigError: it depends on the numbers of examples, and not all clients have stated theirs.
    """
    if weighting == "uniform":
        return np.ones(round.num_clients, np.int64)
    if round.examples is None:
        raise ConfigError(
            "weighting 'examples' of this strategy needs the number of examples of every client, but not all have "
            "stated theirs; let them reply to queries with 'client' and 'num-examples', or use weighting 'uniform'"
        )
    return round.examples
