"""The table of what a node that lies can do: each row that something stops has a test that there is."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
TESTS = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


@pytest.mark.parametrize(("file", "name"), sorted(set(TESTS)))
def test_row_names_a_test_that_exists(file, name):
    assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")


def test_each_row_that_something_stops_has_a_test():
    table = [line for line in PAGE.splitlines() if line.startswith("| ")][1:]
    assert len(table) > 15
    for row in table:
        _, stops, *_ = [cell.strip() for cell in row.strip("|").split("|")]
        assert stops.startswith("nothing") or "::test_" in row, row
