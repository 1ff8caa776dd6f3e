"""A study's tables in a terminal of any width."""

from collections.abc import Sequence

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Beside each column: a space at either side.
_FRAME = 2
# The share of the width that one column of names, or two, may have; longer names are wrapped.
_NAMES = {1: 0.4, 2: 0.55}


def show(text: pd.DataFrame, names: Sequence[str], caption: str, console: Console) -> None:
    """Print a table in as many parts as its columns need, each with the names at its left.

    Args:
        text: the table.
        names: the columns that say what a line is.
        caption: below the last part.
        console: where.
    """
    width = console.width
    widths = {column: max(map(cell_len, [column, *text[column]])) for column in text.columns}
    longest = max(10, int(_NAMES[len(names)] * width / len(names)) - _FRAME)
    widths |= {name: min(widths[name], longest) for name in names}
    blocks: list[list[str]] = [[]]
    for column in text.columns.drop(list(names)):
        needed = sum(widths[name] + _FRAME for name in [*names, *blocks[-1], column])
        if blocks[-1] and needed > width:
            blocks.append([])
        blocks[-1].append(column)
    for block in blocks:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0, 0, 1))
        for name in names:
            table.add_column(name, max_width=longest, overflow="fold")
        for column in block:
            table.add_column(Text(column), justify="right", no_wrap=True)
        for _, line in text.iterrows():
            # Bold instead of Markdown's asterisks.
            cells = [Text(cell.strip("*"), "bold" if cell.startswith("**") else "") for cell in line[block]]
            table.add_row(*map(Text, line[list(names)]), *cells)
        console.print(table)
        console.print()
    console.print(Text(caption, "italic"))
