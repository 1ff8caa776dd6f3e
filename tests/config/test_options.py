"""Options as a class's keyword arguments."""

import inspect
import pydoc
from typing import Literal

import pytest

from fedmr_flwr import FedMR
from fedmr_flwr.algorithms.base import Algorithm
from fedmr_flwr.algorithms.fedmr import FedMROptions
from fedmr_flwr.algorithms.fedprox import FedProx, Prox, ProxOptions
from fedmr_flwr.algorithms.flower import FlowerOptions, flower_strategy
from fedmr_flwr.config import registry
from fedmr_flwr.config.options import options_type
from fedmr_flwr.config.sections import Section
from fedmr_flwr.errors import ConfigError, OptionError

COMMON = [
    "clients_per_round", "seed", "layout", "wire", "guard",
    # Those of Flower's FedAvg.
    "fraction_train", "fraction_evaluate", "min_train_nodes", "min_evaluate_nodes", "min_available_nodes",
    "weighted_by_key", "arrayrecord_key", "configrecord_key", "train_metrics_aggr_fn", "evaluate_metrics_aggr_fn",
]  # fmt: skip


def test_options_have_the_declared_type():
    assert options_type(FedMR) is FedMROptions
    assert options_type(flower_strategy("flwr:FedAvg")) is FlowerOptions
    assert options_type(Prox) is ProxOptions
    assert options_type(type("Bare", (Algorithm,), {})) is Section
    assert FedMR(unit="tensor").options == FedMROptions(unit="tensor")


def test_reads_text_annotations():
    kind = type("Own", (Algorithm,), {"__annotations__": {"options": "FedMROptions"}, "__module__": __name__})
    assert options_type(kind) is FedMROptions


def test_other_option_types_are_refused():
    with pytest.raises(TypeError, match=r"Own.options must be declared as a subclass of fedmr_flwr.Section"):
        type("Own", (Algorithm,), {"__annotations__": {"options": int}})


def test_signature_lists_all_options():
    parameters = inspect.signature(FedMR).parameters
    assert list(parameters) == [
        *COMMON, "population", "weighting", "evaluate_slots", "unit", "first_stage_rounds", "buffers",
        "log_recombination",
    ]  # fmt: skip
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert parameters["clients_per_round"].default is None, "as many as there are"
    assert parameters["unit"].default == "layer"
    assert parameters["unit"].annotation == str | tuple[str, ...]
    assert parameters["buffers"].annotation == Literal["move", "average"]


def test_subclass_signature_is_its_own():
    class Own(FedProx):
        def __init__(self, *, strength: float = 0.5, **arguments) -> None:
            super().__init__(**arguments)

    assert list(inspect.signature(Own).parameters) == ["strength", *COMMON, "weighting"]
    assert list(inspect.signature(FedProx).parameters) == [*COMMON, "weighting"]


@pytest.mark.parametrize("name", registry.ALGORITHMS)
def test_help_lists_the_arguments(name):
    kind = registry.find(name)
    head = pydoc.render_doc(kind, renderer=pydoc.plaintext).partition("Method resolution order")[0]
    assert all(f"{option}: " in head for option in [*COMMON, *options_type(kind).model_fields])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": "layer"}, r"^FedMR: unknown argument 'units'; did you mean 'unit'\?$"),
        ({"client_per_round": 3}, r"unknown argument 'client_per_round'; did you mean 'clients_per_round'\?"),
        ({"x": 3}, r"unknown argument 'x'; known arguments: clients_per_round, seed, .*log_recombination$"),
        ({"unit": "blocks"}, r"^FedMR: unit = 'blocks': "),
        ({"first_stage_rounds": -1}, r"^FedMR: first_stage_rounds = -1: Input should be greater"),
    ],
)
def test_mistakes_name_the_argument(arguments, message):
    with pytest.raises(ConfigError, match=message):
        FedMR(**arguments)


def test_conflicting_argument_is_named():
    with pytest.raises(OptionError, match="^population: 2 is less than the 10 clients of a round"):
        FedMR(clients_per_round=10, population=2)
