"""The section `strategy`: an algorithm and a local rule, each with options of the type that it declares."""

from collections.abc import Iterator
from typing import Any

from pydantic import (
    ConfigDict,
    SerializationInfo,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from fedmr_flwr.config import registry
from fedmr_flwr.config.options import option_keys, options_type
from fedmr_flwr.config.sections import Section, Void, unknown_key, wrong_value
from fedmr_flwr.config.training import Training
from fedmr_flwr.errors import ConfigError


class _Given(Section):
    """A strategy as written in a file, with the options of the algorithm and of the local rule together."""

    # Which keys are valid is known only after the algorithm and the rule are imported.
    model_config = ConfigDict(extra="allow")

    name: str = "fedmr"
    local_rule: str | None = None


class Strategy(Section):
    """The algorithm with its options, and the local rule of its clients with its own.

    In a file and in a dump all options are beside the names: `{"name": "fedmr", "unit": "tensor"}`.

    Attributes:
        name: one of the algorithms below; `flwr:NAME`, any strategy of Flower's, such as `flwr:FedAdam`; or
            `module:Class`, an algorithm of your own.
        local_rule: train as the clients of another algorithm do (`fedprox`, `moon`, `fedasam`), with the options of
            that; if not given, the algorithm's own.
        options: of the algorithm, of the type that it declares.
        rule_options: of the local rule, of the type that it declares.
    """

    name: str = "fedmr"
    local_rule: str | None = None
    # Serialised as their own types: as `Section` pydantic would write none of their fields.
    options: SerializeAsAny[Section]
    rule_options: SerializeAsAny[Section]

    @model_validator(mode="before")
    @classmethod
    def _divide_options(cls, values: Any) -> Any:
        """Import the algorithm and the local rule, and assign each its options."""
        if not isinstance(values, dict):
            return values
        given = _Given.model_validate(values, by_alias=True, by_name=False)
        algorithm = _find("name", given.name)
        rule = algorithm.Rule if given.local_rule is None else _find("local-rule", given.local_rule).Rule
        # Both halves must know the vectors that they exchange: refused before anything is run.
        if problem := _misfit(given, algorithm.Rule.exchanges, rule.exchanges):
            raise wrong_value("local-rule", given.local_rule, problem)
        own, rules = option_keys(algorithm), option_keys(rule)
        # A file could not state which of the two is meant, and a dump has each key once.
        if twice := sorted(own.keys() & rules.keys()):
            problem = f"the algorithm and its local rule have both an option '{twice[0]}'; rename one of them"
            raise wrong_value("name", given.name, problem)
        for key, value in (given.model_extra or {}).items():
            if key not in own and key not in rules:
                raise unknown_key(key, value, ["name", "local-rule", *own, *rules])
        return {
            "name": given.name,
            "local-rule": given.local_rule,
            "options": _among(given, options_type(algorithm)),
            "rule-options": _among(given, options_type(rule)),
        }

    @model_serializer(mode="wrap")
    def _join_options(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        dump: dict[str, Any] = handler(self)
        options = dump.pop("options"), dump.pop("rule-options" if info.by_alias else "rule_options")
        return {**dump, **options[0], **options[1]}

    @property
    def exchanges(self) -> tuple[str, ...]:
        """The names of the vectors that its server and clients exchange besides models."""
        return tuple(registry.find(self.name).Rule.exchanges)

    @property
    def has_population(self) -> bool:
        """Whether it has a model of each slot that can be kept."""
        return "population" in type(self.options).model_fields

    @property
    def represents(self) -> bool:
        """Whether its clients use the representations that `model.features` names."""
        return bool(registry.find(self.local_rule or self.name).Rule.represents)

    def void(self) -> Iterator[Void]:
        """Yield the options of both halves that have no effect beside the others."""
        yield from self.options.void()
        yield from self.rule_options.void()

    def misfit(self, training: Training) -> str | None:
        """Return why the local rule does not work with a training; None if it does."""
        name = self.local_rule or self.name
        problem = registry.find(name).Rule.misfit(training)
        return problem and f"clients of '{name}' do not work with {problem}"


def _find(key: str, name: str) -> type[Any]:
    try:
        return registry.find(name)
    except ConfigError as error:
        raise wrong_value(key, name, str(error)) from None


def _misfit(given: _Given, own: tuple[str, ...], rules: tuple[str, ...]) -> str:
    """Return why a local rule does not work with a strategy; empty if it does."""
    if own == rules:
        return ""
    apart = given.local_rule if rules else given.name
    return (
        f"'{given.local_rule}' does not work with '{given.name}', because server and clients of '{apart}' exchange "
        f"more than models ({', '.join(rules or own)})"
    )


def _among(given: _Given, kind: type[Section]) -> Section:
    """Validate those of the given options that belong to one type."""
    keys = {field.alias for field in kind.model_fields.values()}
    values = {key: value for key, value in (given.model_extra or {}).items() if key in keys}
    return kind.model_validate(values, by_alias=True, by_name=False)
