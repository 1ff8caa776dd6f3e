"""A section of the configuration, and what is wrong with its values in one line."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from fedmr_flwr.errors import ConfigError


def _absolute(path: Any) -> Any:
    try:
        return Path(path).expanduser().absolute() if isinstance(path, str | Path) else path
    except RuntimeError as error:  # of a user who is not known
        raise ValueError(str(error)) from None


S = TypeVar("S", bound="Section")
AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]


class Section(BaseModel):
    """A part of the configuration: kebab-case keys, immutable, nothing unknown."""

    model_config = ConfigDict(
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `rounds: yes`, which would count as 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false mean nothing here")
        return value


def checked(kind: type[S], values: dict[str, Any], where: str, prefix: str = "") -> S:
    """Validate a section and report what is wrong with it as one line.

    Args:
        kind: the section's type.
        values: its values by kebab-case key.
        where: what to call the source of the values in an error.
        prefix: the dotted path of the section, with a dot at the end, or "".

    Raises:
        ConfigError: a key, type or value is wrong.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        known = [prefix + key for key in _keys(kind)]
        problems = [_describe(problem, known, prefix) for problem in error.errors()]
        raise ConfigError(f"{where}: {'; '.join(problems)}") from None


def _keys(kind: type[Section], prefix: str = "") -> Iterator[str]:
    """List the dotted keys of a section."""
    for name, field in kind.model_fields.items():
        key = prefix + (field.alias or name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _keys(field.annotation, key + ".")
        else:
            yield key


def _describe(problem: Any, known: list[str], prefix: str) -> str:
    """Say in a few words what pydantic found wrong."""
    key = prefix + ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key '{key}'; {hint}"
    if problem["type"] == "model_type":
        return f"{key} = {problem['input']!r}: it has keys of its own; write {key}.name={problem['input']}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key} = {problem['input']!r}: {message}" if problem["loc"] else message
