"""The options of an algorithm or a local rule, declared once as `options: FedMROptions`."""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from fedmr_flwr.config.sections import Section, explain
from fedmr_flwr.errors import ConfigError


def options_type(kind: type) -> type[Section]:
    """Return the declared type of a class's attribute `options`, or of its nearest base that declares it.

    Raises:
        TypeError: it is not a subclass of `Section`.
    """
    for base in kind.__mro__:
        # Not `typing.get_type_hints`: it would resolve every annotation of the class, also those that need imports.
        declared = inspect.get_annotations(base).get("options")
        if isinstance(declared, str):  # under `from __future__ import annotations`
            declared = eval(declared, vars(sys.modules[base.__module__]))
        if declared is not None:
            if not (isinstance(declared, type) and issubclass(declared, Section)):
                raise TypeError(f"{base.__name__}.options must be declared as a subclass of fedmr_flwr.Section")
            return declared
    return Section


def option_keys(kind: type) -> dict[str, str]:
    """Return the Python names of a class's options by their keys in a configuration."""
    return {field.alias or name: name for name, field in options_type(kind).model_fields.items()}


def validate_arguments(kind: type, arguments: Mapping[str, Any]) -> Section:
    """Validate keyword arguments for a class's options.

    Args:
        kind: the class.
        arguments: by Python name.

    Returns:
        Options of the declared type.

    Raises:
        ConfigError: an argument is unknown or its value is wrong; the message has the Python name.
    """
    try:
        options = options_type(kind).model_validate(arguments)
    except ValidationError as error:
        names = option_keys(kind)
        # All arguments of the class: a misspelled `seed` is not an option, but should be suggested.
        known = list(inspect.signature(kind).parameters)
        problems = []
        for details in error.errors():
            first, *rest = map(str, details["loc"])
            name = ".".join([names.get(first, first), *rest])
            problems.append(str(explain(details, name, known, noun="argument")))
        raise ConfigError(f"{kind.__name__}: {'; '.join(problems)}") from None
    names = option_keys(kind)
    for void in options.void():
        name = names[void.key]
        # The values of a configuration are all given, defaults included.
        if getattr(options, name) != type(options).model_fields[name].default:
            raise ConfigError(f"{kind.__name__}: {name}: {void.problem}")
    return options


def signature(kind: type, *constructors: Callable[..., Any]) -> inspect.Signature:
    """Return the keyword arguments of a class: those of constructors, then its options.

    For `help`, and for editors that import modules. Type checkers do not run code: for them each algorithm would have
    to repeat its options in a TypedDict; `**options: Any` is checked when the object is created.
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
