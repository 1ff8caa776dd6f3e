"""Text that is made to command a terminal, where people look at it."""

import io

import pytest
from rich.table import Table
from rich.text import Text

from fedmr_flwr.errors import DataError
from fedmr_flwr.report.console import Console
from fedmr_flwr.report.figures import plain

# Sets a title, clears the screen, links, goes back in the line, and writes from right to left.
HOSTILE = "a\x1b]0;b\x07\x1b[2J\x1b]8;;http://c\x1b\\\r\x08\x9b2J\u202ed"
SEEN = "a]0;b[2J]8;;http://c\\2Jd"


def printed(what, **keywords):
    console = Console(file=io.StringIO(), width=60, **keywords)
    console.print(what, highlight=False)
    return console.file.getvalue()


def test_line_keeps_only_what_is_seen():
    assert printed(f"{HOSTILE}\nnext\tone") == f"{SEEN}\nnext    one\n"


def test_table_stays_aligned():
    table = Table()
    table.add_column("name")
    table.add_row(Text(HOSTILE))
    lines = printed(table).splitlines()
    assert SEEN in lines[3]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("name", ["[bold]a", "[/]", "[/b]", ":warning:", "[link=http://c]a"])
def test_name_is_shown_as_it_is(name):
    table = Table()
    table.add_row(name)
    assert name in printed(name)
    assert name in printed(table)


def test_colours_of_our_own_stay():
    assert printed(Text("a\x1b[5m", "red"), force_terminal=True, color_system="standard") == "\x1b[31ma[5m\x1b[0m\n"


def test_error_keeps_only_what_is_seen():
    assert str(DataError(f"{HOSTILE} is missing")) == "a]0;b[2J]8;;http://c\\ 2Jd is missing"  # a return is a break


@pytest.mark.filterwarnings("error")
def test_picture_keeps_only_what_can_be_drawn():
    assert plain(f"${HOSTILE}$\nb") == f"\\${SEEN}\\$\nb"
