"""The section `strategy`, whose options are typed."""

import json
import sys
from types import SimpleNamespace

import pytest
import yaml
from pydantic import Field

from fedmr_flwr import algorithms
from fedmr_flwr.algorithms.fedavg import FedAvg
from fedmr_flwr.algorithms.fedcross import FedCrossOptions
from fedmr_flwr.algorithms.fedmr import FedMROptions
from fedmr_flwr.algorithms.fedprox import Prox, ProxOptions
from fedmr_flwr.config import loading, registry
from fedmr_flwr.config.loading import to_yaml
from fedmr_flwr.config.sections import Section
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.training.rules import LocalRule, local_rule

SECTIONS = [
    {},
    {"name": "fedmr", "unit": ["conv", "."], "first-stage-rounds": 3},
    {"name": "fedcross", "alpha": 0.5, "local-rule": "fedprox", "mu": 0.25},
    {"name": "flwr:FedAdam", "options": {"eta": 0.001}},
    *({"name": name} for name in registry.ALGORITHMS),
]


def parse(**strategy):
    return loading.parse({"strategy": {key.replace("_", "-"): value for key, value in strategy.items()}}, "run.yaml")


def test_options_of_both_halves_are_typed():
    strategy = parse(name="fedcross", alpha=0.5, local_rule="fedprox", mu=0.25).strategy
    assert strategy.options == FedCrossOptions(alpha=0.5)
    assert strategy.rule_options == ProxOptions(mu=0.25)


def test_dump_has_options_side_by_side():
    dump = parse(name="fedprox", mu=0.25).model_dump(mode="json", by_alias=True)
    assert dump["strategy"] == {"name": "fedprox", "local-rule": None, "weighting": "examples", "mu": 0.25}


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_dump_parses_back(section):
    settings = loading.parse({"strategy": section, "run-dir": "here"}, "run.yaml")
    assert loading.parse(yaml.safe_load(to_yaml(settings)), "again") == settings
    assert Settings.model_validate(json.loads(settings.model_dump_json(by_alias=True))) == settings


def test_python_settings_equal_files():
    assert Settings(rounds=3, strategy={"unit": "tensor"}).strategy == parse(unit="tensor").strategy
    assert Settings().strategy.options == FedMROptions()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"unti": "layer"}, r"^run.yaml: unknown key 'strategy.unti'; did you mean 'strategy.unit'\?$"),
        ({"first_stage_rounds": 3}, r"did you mean 'strategy.first-stage-rounds'\?"),
        ({"x": 3}, r"unknown key 'strategy.x'; known keys: name, local-rule, population, .*unit"),
        ({"seed": 3}, r"unknown key 'strategy.seed'"),
        ({"unit": "blocks"}, r"^run.yaml: strategy.unit = 'blocks': "),
        ({"name": "fedprox", "mu": -1}, r"^run.yaml: strategy.mu = -1: Input should be greater than or equal to 0"),
        ({"name": "fedpox"}, r"^run.yaml: strategy.name: unknown algorithm 'fedpox'; choose one of clusamp, "),
        ({"local-rule": "fedpox"}, r"^run.yaml: strategy.local-rule: unknown algorithm 'fedpox'; choose one of "),
        ({"name": 3}, r"^run.yaml: strategy.name = 3: Input should be a valid string"),
        ({"name": "flwr:FedX"}, r"^run.yaml: strategy.name: unknown strategy 'flwr:FedX'; choose one of flwr:"),
        ({"name": "nowhere:X"}, r"strategy.name: 'nowhere:X' cannot be imported: No module named 'nowhere'"),
        ({"name": "json:nothing"}, r"'json:nothing' cannot be imported: .*no attribute 'nothing'"),
        ({"name": "json:loads"}, r"'json:loads' must be a class derived from fedmr_flwr.Algorithm"),
        ({"name": "fedmr_flwr:Algorithm"}, r"strategy.name: 'fedmr_flwr:Algorithm' must define combine, models$"),
    ],
    ids=str,
)
def test_mistakes_name_the_key(section, message):
    with pytest.raises(ConfigError, match=message):
        loading.parse({"strategy": section}, "run.yaml")


def test_other_errors_come_first():
    with pytest.raises(ConfigError, match="^run.yaml: rounds = 0: [^;]*$"):
        loading.parse({"rounds": 0, "strategy": {"unti": 3}}, "run.yaml")
    with pytest.raises(ConfigError, match="clients-per-round is 10 but there are only 5 clients"):
        loading.parse({"clients": 5, "strategy": {"unti": 3}}, "run.yaml")


def test_flowers_strategies_need_float32():
    with pytest.raises(ConfigError, match="wire=float16: Flower's own strategies"):
        loading.parse({"wire": "float16", "strategy": {"name": "flwr:FedAvg"}}, "run.yaml")


class MedianOptions(Section):
    trim: float = Field(0.1, ge=0)
    both: bool | str = False


class Median(FedAvg):
    options: MedianOptions


class Held(LocalRule):
    options: MedianOptions


class Holding(Median):
    Rule = Held


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(Median=Median, Holding=Holding))


@pytest.mark.usefixtures("importable")
def test_own_algorithm_by_module_name():
    settings = parse(name="mine:Median", trim=0.25, both=True)
    assert settings.strategy.options == MedianOptions(trim=0.25, both=True)
    strategy = algorithms.create(settings, Layout(()))
    assert (type(strategy), strategy.options.trim) == (Median, 0.25)


@pytest.mark.usefixtures("importable")
def test_shared_option_name_is_refused():
    with pytest.raises(ConfigError, match="strategy.name: the algorithm and its local rule have both"):
        parse(name="mine:Holding", trim=0.25)


def test_local_rule_gets_its_options():
    rule = local_rule(parse(local_rule="fedprox", mu=0.25).strategy)
    assert (type(rule), rule.options) == (Prox, ProxOptions(mu=0.25))
