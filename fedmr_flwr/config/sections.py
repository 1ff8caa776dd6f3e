"""The base class of configuration sections, and the messages about wrong values."""

import difflib
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from fedmr_flwr.errors import ConfigError


def _absolute(path: Any) -> Any:
    try:
        return Path(path).expanduser().absolute() if isinstance(path, str | Path) else path
    except RuntimeError as error:  # the home of an unknown user
        raise ValueError(str(error)) from None


S = TypeVar("S", bound="Section")
AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]

# The errors of one file that are shown, and the characters of a key or value.
_MOST_PROBLEMS, _MOST_SHOWN = 5, 200
_UNKNOWN, _NAMED = "extra_forbidden", "named"
# Messages quote values, which may be YAML of any size.
_short = reprlib.Repr()
_short.maxlevel = 2
_short.maxstring = _short.maxother = _short.maxlong = _MOST_SHOWN


def shorten(text: str) -> str:
    """Return text of a user's for a message: in one line, and cut if it is very long."""
    line = " ".join(text.split())
    return line if len(line) <= _MOST_SHOWN else f"{line[:_MOST_SHOWN]}..."


class Void(NamedTuple):
    """A key that has no effect, as the others are.

    Attributes:
        key: with dots, from the section that states it.
        others: the keys that decide it.
        problem: why it has none, and what to do, for the user.
        stays: whether it stays where a later source makes it void, because a run may be continued to more rounds.
    """

    key: str
    others: tuple[str, ...]
    problem: str
    stays: bool = False

    def within(self, section: str) -> "Void":
        """Return it with keys from the section above."""
        return self._replace(key=f"{section}.{self.key}", others=tuple(f"{section}.{key}" for key in self.others))


class Section(BaseModel):
    """A section of the configuration: kebab-case keys, immutable, unknown keys are errors."""

    model_config = ConfigDict(
        alias_generator=lambda name: name.replace("_", "-"),
        # Python callers use names with underscores; `validate_section` accepts only the keys.
        populate_by_name=True,
        extra="forbid",
        # Immutable and so hashable: caches use sections as keys.
        frozen=True,
        # NaN would pass every bound.
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    def void(self) -> Iterator[Void]:
        """Yield the keys, given or not, that have no effect beside the values of the others."""
        for name, field in type(self).model_fields.items():
            if isinstance(inner := getattr(self, name), Section):
                yield from (found.within(str(field.alias)) for found in inner.void())

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `rounds: true`, which pydantic reads as 1."""
        # Not pydantic's strict mode, which would also refuse text for a path and a list for a tuple.
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise ValueError("must not be true or false")
        return value


def validate_section(
    kind: type[S], values: Mapping[str, Any], where: str, overrides: Mapping[str, str] = MappingProxyType({})
) -> S:
    """Validate the values of a file, and report all errors in one line.

    Args:
        kind: the section's type.
        values: its values by kebab-case key.
        where: the name of the values' source in an error.
        overrides: the text of each override by its dotted key; an error in one is reported with its text.

    Raises:
        ConfigError: a key, type or value is wrong.
    """
    try:
        # Keys only: `batch_size` in a file would otherwise be a second spelling, and duplicates would go unnoticed.
        return kind.model_validate(values, by_alias=True, by_name=False)
    except ValidationError as error:
        known = list(_dotted_keys(kind))
        texts = []
        errors = error.errors()
        for details in errors[:_MOST_PROBLEMS]:
            key = ".".join(map(str, details["loc"]))
            problem = explain(details, shorten(key), known)
            override = override_of(key, overrides)
            if override is None:
                texts.append(f"{where}: {problem}")
            else:
                shown = shorten(overrides[override])
                texts.append(f"'{shown}': {problem.message if override == key else problem}")
        if len(errors) > _MOST_PROBLEMS:
            texts.append(f"and {len(errors) - _MOST_PROBLEMS} more errors")
        raise ConfigError("; ".join(texts)) from None


def drop(values: dict[str, Any], key: str) -> None:
    """Remove a key "a.b" from nested mappings, if it is there."""
    first, _, rest = key.partition(".")
    if not rest:
        values.pop(first, None)
    elif isinstance(inner := values.get(first), dict):
        drop(inner, rest)


class Problem(NamedTuple):
    """An error in one key.

    Attributes:
        about: the key, with its value if useful; empty if the message names the key itself.
        message: the error.
    """

    about: str
    message: str

    def __str__(self) -> str:
        return f"{self.about}: {self.message}" if self.about else self.message


def explain(details: ErrorDetails, name: str, known: Iterable[str], noun: str = "key") -> Problem:
    """Return the message for one of pydantic's errors.

    Args:
        details: an entry of `ValidationError.errors()`.
        name: the key as the user writes it.
        known: the valid names, for suggestions if this one is unknown.
        noun: the word for a name in messages.
    """
    kind, value = details["type"], _short.repr(details["input"])
    if kind == _UNKNOWN:
        last = shorten(str(details["loc"][-1]))  # as in the name
        section = name.removesuffix(last)
        names = [key.removeprefix(section) for key in known if key.startswith(section)]
        # A strategy's keys depend on its algorithm and are not in the schema, so the error brings them along.
        names = details.get("ctx", {}).get("known", names)
        # Only the last part: a common prefix would make every key of a section similar.
        near = difflib.get_close_matches(last, names, n=1)
        hint = f"did you mean '{section}{near[0]}'?" if near else f"known {noun}s: {', '.join(names)}"
        return Problem("", f"unknown {noun} '{name}'; {hint}")
    if kind == "model_type":
        inner = next((key for key in known if key.startswith(f"{name}.")), "")
        return Problem("", f"{name} is a section; set one of its keys, such as {inner}")
    if kind == "missing":
        return Problem("", f"{name} is missing")
    if kind == _NAMED:
        return Problem(name, details["msg"])
    if kind == "path_type":
        return Problem(f"{name} = {value}", "Input should be a path; put one that YAML takes for a number in quotes")
    message = details["msg"].removeprefix("Value error, ")
    return Problem(f"{name} = {value}" if details["loc"] else "", message)


def unknown_key(key: str, value: object, known: Iterable[str]) -> ValidationError:
    """Return the error for an unknown key that a section finds itself."""
    return _error_of(key, value, PydanticCustomError(_UNKNOWN, "unknown key", {"known": list(known)}))


def wrong_value(key: str, value: object, message: str) -> ValidationError:
    """Return the error for a wrong value that a section finds itself; the message names the value."""
    return _error_of(key, value, PydanticCustomError(_NAMED, "{message}", {"message": message}))


def _error_of(key: str, value: object, kind: PydanticCustomError) -> ValidationError:
    return ValidationError.from_exception_data(key, [InitErrorDetails(type=kind, loc=(key,), input=value)])


def _dotted_keys(kind: type[Section], prefix: str = "") -> Iterator[str]:
    """Yield the keys of a section and of its inner sections."""
    for name, field in kind.model_fields.items():
        key = prefix + (field.alias or name)
        kinds = (field.annotation, *get_args(field.annotation))
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
        if inner is None:
            yield key
        else:
            yield from _dotted_keys(inner, key + ".")


def override_of(key: str, overrides: Mapping[str, str]) -> str | None:
    """Return the key of the override that set a key, or a section or key of it; None if a file set it."""
    if key in overrides or not key:
        return key or None
    return next((own for own in overrides if f"{key}.".startswith(f"{own}.") or own.startswith(f"{key}.")), None)
