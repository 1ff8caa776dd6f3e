import io
import re

import pytest
from rich.console import Console
from rich.text import Text

from fedmr_flwr.config.loading import parse
from fedmr_flwr.report.display import Display, format_partition, format_row
from fedmr_flwr.report.tables import table

ROWS = [
    {"round": 1, "seconds": 1.5, "train-loss": 2.0, "replies": 3, "failures": 0},
    {
        "round": 2,
        "seconds": 0.5,
        "train-loss": 1.0,
        "replies": 2,
        "failures": 1,
        "test-loss": 0.7,
        "test-accuracy": 0.5,
        "failed": [{"client": 4, "kind": "not-finite", "reason": "'floats' holds [NaN]"}],
    },
]


def shown(terminal):
    console = Console(file=io.StringIO(), width=100 if terminal else 30, force_terminal=terminal)
    with Display(2, console) as display:
        for row in ROWS:
            display.show(row)
    return console.file.getvalue()


def test_plain_output_has_a_line_per_round():
    assert shown(terminal=False).splitlines() == [
        "round 1/2  train loss 2.0000  1.50 s/round",
        "round 2/2  accuracy 0.5000  loss 0.7000  train loss 1.0000  0.50 s/round  1 failed",
        "  client 4: not-finite: 'floats' holds [NaN]",
    ]


def test_terminal_shows_a_bar():
    text = shown(terminal=True)
    for part in ("2/2", "accuracy 0.5000", "loss 0.7000", "0.50 s/round", "━"):
        assert part in text


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("rounds", [50, 2000])
def test_narrow_terminal_shows_whole_numbers(width, rounds):
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    with Display(rounds, console) as display:
        display.show(ROWS[1] | {"round": rounds - 1, "seconds": 13.25, "failed": []})
    last = Text.from_ansi(console.file.getvalue()).plain.strip().splitlines()[-1].rstrip()
    assert f"round {rounds - 1}/{rounds} ━" in last
    assert "accuracy 0.5000" in last
    assert re.search(r" -?:\d\d:\d\d$| \d:\d\d:\d\d$| -:--:--$", last), last
    assert len(last) <= width


def test_least_important_numbers_go_first():
    whole = "accuracy 0.5000  loss 0.7000  train loss 1.0000  0.50 s/round  1 failed"
    assert format_row(ROWS[1]) == format_row(ROWS[1], len(whole)) == whole
    assert format_row(ROWS[1], len(whole) - 1) == "accuracy 0.5000  loss 0.7000  0.50 s/round  1 failed"
    assert format_row(ROWS[1], 30) == "accuracy 0.5000  1 failed"
    assert format_row(ROWS[1], 1) == "accuracy 0.5000"


def test_table_has_the_last_round():
    rows = [ROWS[1] | {"round": number, "test-accuracy": number / 100} for number in range(1, 98)]
    made = table(rows)
    rounds = list(made.columns[0].cells)
    assert len(rounds) <= 12
    assert rounds[-1] == "97"
    assert made.caption == "best test accuracy 0.9700 in round 97"


def test_table_names_the_validation_set():
    row = {"round": 1, "seconds": 0.5, "failures": 0, "validation-accuracy": 0.5, "validation-loss": 0.7}
    made = table([row])
    assert made.caption == "best validation accuracy 0.5000 in round 1"
    assert [str(column.header) for column in made.columns][1:3] == ["validation accuracy", "validation loss"]
    assert format_row(row) == "accuracy 0.5000  loss 0.7000  0.50 s/round"


def test_collapse_is_shown_and_stands_beside_the_best():
    row = ROWS[1] | {"round": 7, "collapse": "the global model has collapsed: loss 23"}
    console = Console(file=io.StringIO(), width=100)
    Display(9, console).show(row)
    assert "  round 7: the global model has collapsed: loss 23\n" in console.file.getvalue()
    made = table([ROWS[1] | {"round": 6, "test-accuracy": 0.95}, row])
    assert made.caption == "best test accuracy 0.9500 in round 6; the global model collapsed in round 7"


def test_limited_examples_are_said_once():
    console = Console(file=io.StringIO(), width=100)
    display = Display(9, console)
    for number in (1, 2):
        display.show(ROWS[1] | {"round": number, "limited-examples": {3: (10**14, 120)}})
    assert console.file.getvalue().count("client 3: it states 100000000000000 examples; 120 count") == 1


def test_refused_nodes_are_said_once():
    console = Console(file=io.StringIO(), width=100)
    display = Display(9, console)
    for number in (1, 2):
        display.show(ROWS[1] | {"round": number, "refused": ["two nodes have client number 3"]})
    assert console.file.getvalue().count("a node is connected and not used: two nodes have client number 3") == 1


def test_table_without_evaluation():
    console = Console(file=io.StringIO(), width=100)
    console.print(table([{"round": 1, "seconds": 0.1, "failures": 0}]))
    assert "no round was evaluated" in console.file.getvalue()


def test_only_dirichlet_is_filled_up():
    def text(**partition):
        return format_partition(parse({"partition": partition}, "test"))

    assert text(**{"name": "dirichlet", "fill-up": True}).endswith("dirichlet α = 0.5, filled up")
    assert text(name="quantity").endswith("quantity α = 0.5")
