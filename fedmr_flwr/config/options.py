"""The options of an algorithm or a local rule: declared once, as `options: FedMROptions`, and read from there."""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from fedmr_flwr.config.sections import Section, explain
from fedmr_flwr.errors import ConfigError


def options_type(kind: type) -> type[Section]:
    """Return what a class, or the nearest of its bases, declares its attribute `options` to be.

    Raises:
        TypeError: that is no `Section`.
    """
    for base in kind.__mro__:
        declared = inspect.get_annotations(base).get("options")
        if isinstance(declared, str):  # under `from __future__ import annotations`
            declared = eval(declared, vars(sys.modules[base.__module__]))
        if declared is not None:
            if not (isinstance(declared, type) and issubclass(declared, Section)):
                raise TypeError(f"{base.__name__}.options must be declared as a subclass of config.Section")
            return declared
    return Section


def option_keys(kind: type) -> dict[str, str]:
    """Return the Python names of a class's options by their keys in a configuration."""
    return {field.alias or name: name for name, field in options_type(kind).model_fields.items()}


def validate_arguments(kind: type, arguments: Mapping[str, Any]) -> Section:
    """Validate the keyword arguments that a Python caller gave for a class's options.

    Args:
        kind: the class.
        arguments: by Python name.

    Returns:
        Options of the declared type.

    Raises:
        ConfigError: an argument is unknown or its value wrong; the message names it as the caller does.
    """
    try:
        return options_type(kind).model_validate(arguments)
    except ValidationError as error:
        names = option_keys(kind)
        known = list(inspect.signature(kind).parameters)
        problems = []
        for details in error.errors():
            first, *rest = map(str, details["loc"])
            name = ".".join([names.get(first, first), *rest])
            problems.append(str(explain(details, name, known, noun="argument")))
        raise ConfigError(f"{kind.__name__}: {'; '.join(problems)}") from None


def signature(kind: type, *constructors: Callable[..., Any]) -> inspect.Signature:
    """Return the keyword arguments of a class: those that constructors name, then its options.

    For `help` and editors that import. Type checkers run no code, so for them each algorithm would have to repeat its
    options in a TypedDict of its own; `**options: Any` is checked when the object is made.
    """
    named = {
        name: parameter
        for constructor in constructors
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name, field in options_type(kind).model_fields.items():
        default = inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True)
        named[name] = inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=field.annotation
        )
    return inspect.Signature([*named.values()])
