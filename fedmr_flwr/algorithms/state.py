"""What Flower's own strategies must keep between rounds, where that is known."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedmr_flwr.errors import ConfigError

# Exactly these, not what users derive from them: a subclass may keep more.
_WITHOUT_STATE = (
    flower.FedAvg, flower.FedProx, flower.FedMedian, flower.FedTrimmedAvg, flower.Krum, flower.MultiKrum,
    flower.Bulyan, flower.QFedAvg,
)  # fmt: skip
_WITH_MOMENTS = (flower.FedAdam, flower.FedAdagrad, flower.FedYogi)
_MOMENTS = ("m_t", "v_t")
_MOMENTUM = "momentum_vector"


def state_of(strategy: Strategy) -> dict[str, NDArray[Any]]:
    """Return what a strategy must keep between rounds, besides the global model, by name.

    Args:
        strategy: any; of one that is not known nothing is returned, and `restore` refuses it.
    """
    if isinstance(strategy, _WITH_MOMENTS):
        return {
            f"{moment}.{name}": np.asarray(values)  # of a tensor without axes Flower makes a NumPy scalar
            for moment in _MOMENTS
            for name, values in (getattr(strategy, moment) or {}).items()
        }
    if isinstance(strategy, flower.FedAvgM):
        return {f"{_MOMENTUM}.{at}": np.asarray(values) for at, values in enumerate(strategy.momentum_vector or [])}
    return {}


def restore(strategy: Strategy, state: Mapping[str, NDArray[Any]]) -> None:
    """Put a strategy into the state that `state_of` returned.

    Raises:
        ConfigError: it is not known what the strategy keeps.
    """
    if type(strategy) in _WITH_MOMENTS:
        for moment in _MOMENTS:
            own = {
                name.removeprefix(f"{moment}."): values.copy()
                for name, values in state.items()
                if name.startswith(f"{moment}.")
            }
            setattr(strategy, moment, own or None)
    elif type(strategy) is flower.FedAvgM:
        strategy.momentum_vector = [state[f"{_MOMENTUM}.{at}"].copy() for at in range(len(state))] or None
        strategy.current_arrays = None  # taken from the global model in the next round
    elif type(strategy) not in _WITHOUT_STATE:
        raise ConfigError(
            f"a run of {type(strategy).__name__} cannot be resumed, because what it keeps between rounds is not "
            "known; give it `state` and `restore` by deriving it from fedmr_flwr.algorithms.base.Algorithm"
        )
