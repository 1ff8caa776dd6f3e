"""The documents: Python examples, links, and a row for each key of the configuration."""

import ast
import re
from pathlib import Path
from typing import get_type_hints

import pytest

from fedmr_flwr.analysis.studies.plan import plan
from fedmr_flwr.analysis.studies.study import study_of
from fedmr_flwr.config.registry import ALGORITHMS, find
from fedmr_flwr.config.sections import Section
from fedmr_flwr.config.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


# Strategies of a comparison that the page names with values for their options.
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
VALUES = sorted(set(re.findall(r"`(\w+(?:/[\w.-]+=[\w.]+)+)`", PAGE)))


@pytest.mark.parametrize("text", VALUES)
def test_published_values_are_accepted(text, tmp_path):
    (run,) = plan(study_of(["quickstart"], text), [], tmp_path)
    assert run.settings.strategy.name == text.partition("/")[0]


def test_page_has_published_values():
    assert len(VALUES) > 5


@pytest.mark.parametrize("block", BLOCKS)
def test_example_is_python_and_its_imports_exist(block):
    imports = [node for node in ast.parse(block).body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "example", "exec"), {})


@pytest.mark.parametrize("block", [block for block in BLOCKS if "class " in block.values[0]])
def test_example_that_defines_a_class_runs(block):
    exec(block, {"__name__": "example"})


def anchors(page):
    """Return the anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "benchmarks" / "README.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for path, _, anchor in (link.partition("#") for link in links):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def keys_of(section, prefix=""):
    """Yield the keys of a section of the configuration and of those inside it, with dots."""
    for name, field in section.model_fields.items():
        key = prefix + (field.alias or name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from keys_of(field.annotation, f"{key}.")
        else:
            yield key


def rows_missing(section, prefix=""):
    return [key for key in keys_of(section, prefix) if f"`{key}`" not in PAGE]


def test_every_key_has_a_row():
    assert rows_missing(Settings) == []


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_option_has_a_row(name):
    algorithm = find(name)
    for half in (algorithm, algorithm.Rule):
        assert rows_missing(get_type_hints(half)["options"], "strategy.") == []
