"""The Python examples in the documents."""

import ast
import re
from pathlib import Path

import pytest

from fedmr_flwr.analysis.studies.plan import plan
from fedmr_flwr.analysis.studies.study import study_of

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
