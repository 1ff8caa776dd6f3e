"""The table of Flower's insides: complete, and each row with a test that there is."""

import ast
import re
from pathlib import Path

import fedmr_flwr.wire.flower as room
from tests.contract.test_imports import PUBLIC_FLOWER

ROOM = Path(room.__file__).parent
README = (ROOM / "README.md").read_text()


def inner_names():
    """Every name that the room imports from a module of Flower that is not public."""
    for path in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            inner = isinstance(node, ast.ImportFrom) and node.module not in PUBLIC_FLOWER
            if inner and str(node.module).split(".")[0] == "flwr":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_readme_lists_every_inner_name():
    for name in inner_names():
        assert re.search(rf"`{name}[`.]", README) or f"`{name.rpartition('.')[2]}`" in README, name


def private_attributes():
    """Every attribute with an underscore that the room reads or sets of something other than itself."""
    for path in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                name = node.attr
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                name = str(node.slice.value)
            else:
                continue
            if re.match("_[a-z]", name):
                yield name


def test_readme_lists_every_private_attribute():
    found = {*private_attributes()}
    assert "_message_id" in found
    assert not {name for name in found if not re.search(rf"[`.]{name}`", README)}


def test_readme_lists_nothing_that_is_unused():
    code = "".join(path.read_text() for path in ROOM.glob("*.py"))
    for path in re.findall(r"`(flwr\.[\w.]+)`", README):
        assert re.search(rf"\b{path.rpartition('.')[2]}\b", code), path


def test_readme_rows_name_existing_tests():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    rows = [line for line in README.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) > 10
    for row in rows:
        name = row.split("|")[-2].strip().strip("`")
        assert f"def {name}(" in tests, row
