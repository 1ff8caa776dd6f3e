"""Write docs/reference/configuration.md from the types and docstrings of the settings.

.venv/bin/python docs/configuration.py
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from fedmr_flwr.algorithms.flower import FlowerStrategy
from fedmr_flwr.config.options import options_type
from fedmr_flwr.config.registry import ALGORITHMS, find
from fedmr_flwr.config.sections import Section
from fedmr_flwr.config.settings import Settings

PAGE = Path(__file__).parent / "reference" / "configuration.md"
START = """\
# Configuration
<!-- Written by docs/configuration.py from the types and docstrings of the settings. -->

The names are the same in a YAML file (nested), on the command line (`fedmr run FILE key=value …`), and under
`flwr run . --run-config "conf='FILE' set='key=value key=value'"`. An unknown key is an error. Files are YAML 1.2:
`1e-3` is a number, `yes` and `2026-11-26` are text. Anchors and merge keys (`<<`) are read, tags are not.

A key without any effect beside the others is an error, too: `partition.alpha` with `partition.name=iid`,
`ray.address` with `engine=gpu`, `training.momentum` with `adam`, a round of `keep-models` after the last one. That
holds within one source, a file or a command line. What a file sets and the command line leaves without effect is
dropped, so that `partition.name=iid` can be typed after a file with `partition.alpha`; keys that count rounds
(`keep-models`, `training.warmup-rounds`, `training.decay-rounds`) stay, since a run can be resumed to more. In a
comparison, what distinguishes its runs may leave without effect what is set for all of them.

A run writes its configuration, all defaults included but without keys that have no effect, to `config.yaml` in its
folder; `fedmr run` reads such a file, too.
"""
# The guides that have more about a section or an algorithm.
GUIDES = {
    "ray": "[cluster](../guides/cluster.md), [one GPU](../guides/one-gpu.md)",
    "deployment": "[deployment](../guides/deploy.md)",
    "privacy": "[local differential privacy](../guides/privacy.md), [sealed recombination](../sealed.md)",
    "evaluation": "[measuring](../guides/measure.md)",
    "stop": "[ending early](../guides/run.md#ending-early)",
    "data": "[data and partitions](../guides/data.md), [your own data](../guides/your-data.md)",
    "partition": "[data and partitions](../guides/data.md#partitions)",
    "model": "[your own model](../guides/your-model.md)",
    "training": "[local training](../guides/training.md)",
    "strategy": "[strategies](../guides/strategies.md), [your own algorithm](../guides/your-algorithm.md)",
}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "gt": ">", "maximum": "≤", "exclusiveMaximum": "<"}
KINDS = {"integer": "whole number", "number": "number", "string": "text", "object": "a mapping"}


def values(schema: dict[str, Any]) -> str:
    """Return which values a key takes, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(values(kind) for kind in schema["anyOf"] if kind.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "boolean":
        return "`true`, `false`"
    if schema.get("format") == "path":
        return "a path"
    if "prefixItems" in schema:
        return f"[{', '.join(values(kind) for kind in schema['prefixItems'])}]"
    if "items" in schema:
        return f"[{values(schema['items'])}, …]"
    bounds = [f"{sign} {schema[bound]}" for bound, sign in BOUNDS.items() if bound in schema]
    return " ".join([KINDS[schema["type"]], ", ".join(bounds)]).strip()


def default(schema: dict[str, Any]) -> str:
    """Return the default of a key as YAML writes it."""
    value = schema.get("default")
    if value is None or value in ([], {}):
        return "–"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def meanings(kind: type[Section]) -> dict[str, str]:
    """Return what the docstrings of a section and of its bases say of each attribute."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, text = (inspect.cleandoc(base.__doc__ or "")).partition("Attributes:\n")
        for name, meaning in re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", text, re.MULTILINE):
            found[name] = " ".join(meaning.split())
    return found


def inner(annotation: Any) -> type[Section] | None:
    """Return the section that a key stands for, if it does."""
    kinds = [annotation, *get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def rows(kind: type[Section], prefix: str = "") -> Iterator[str]:
    """Yield the rows of a section's own keys."""
    schemas = kind.model_json_schema()["properties"]
    texts = meanings(kind)
    for name, field in kind.model_fields.items():
        if not inner(field.annotation):
            key = str(field.alias)
            yield f"| `{prefix}{key}` | {values(schemas[key])} | {default(schemas[key])} | {texts[name]} |"


def table(rows: list[str]) -> str:
    """Return a table of keys."""
    return "\n".join(["| key | values | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def section(kind: type[Section], prefix: str = "") -> Iterator[str]:
    """Yield the text of a section and of those inside it."""
    own = list(rows(kind, prefix))
    if prefix and own:
        title, name = inspect.cleandoc(kind.__doc__ or "").partition("\n\nAttributes:")[0], prefix.removesuffix(".")
        guide = f" More: {GUIDES[name]}." if name in GUIDES else ""
        yield f"## `{name}`\n{' '.join(title.split())}{guide}\n"
    if own:
        yield table(own)
    for name, field in kind.model_fields.items():
        if (below := inner(field.annotation)) and name != "strategy":
            yield from section(below, f"{prefix}{field.alias}.")


def options(kind: type) -> list[str]:
    """Return the rows of an algorithm's options and of its local rule's."""
    halves = [options_type(kind), options_type(kind.Rule)]
    return [row for half in halves for row in rows(half, "strategy.")]


def page() -> str:
    """Return the text of the page."""
    strategy = get_type_hints(Settings)["strategy"]
    known = {f"`{name}`": find(name) for name in ALGORITHMS} | {"`flwr:NAME`": FlowerStrategy}
    parts = [START, *section(Settings)]
    parts += [f"## `strategy`\n{inspect.getdoc(strategy).partition(chr(10))[0]} More: {GUIDES['strategy']}.\n"]
    parts += [table(list(rows(strategy, "strategy.")))]
    for name, kind in known.items():
        summary = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0]
        parts += [f"### {name}\n{' '.join(summary.split())}\n", table(options(kind))]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
