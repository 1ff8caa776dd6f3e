"""metrics.jsonl: what is read of damaged lines."""

import json
import math
from pathlib import Path

import pytest

from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.runs.rows import to_line, whole_rows

ROW = {
    "round": 1, "seconds": 0.5, "clients": [0, 1], "slots": [0, 1], "replies": 2, "failures": 1, "train-loss": None,
    "test-loss": 1.5, "test-accuracy": 0.5, "bytes-down": {"arrays": 5}, "spread": [0.5, None],
    "failed": [{"client": 1, "kind": "timeout", "reason": "none"}], "macro-f1": 0.4,
    "anything": "else",
}  # fmt: skip
PATH = Path("metrics.jsonl")


def read(*lines):
    return list(whole_rows("".join(lines).encode(), PATH))


def test_rows_read_back():
    assert read(to_line(ROW), to_line({"round": 2})) == [ROW, {"round": 2}]


def test_failure_of_an_unknown_client_reads_back():
    row = {"round": 1, "failed": [{"client": -1, "kind": "unsolicited", "reason": "none"}]}
    assert read(to_line(row)) == [row]


@pytest.mark.parametrize("last", ['{"round": 2', '{"round": 2}', "[]\n", "\x00\x00", "{\n", "[" * 100_000])
def test_unfinished_last_line_is_left_out(last):
    assert read(to_line(ROW), last) == [ROW]


@pytest.mark.parametrize("line", ['{"round": 2', "[]", "5", "", "\x00", "{}", '{"seconds": 1}', "[" * 100_000])
def test_other_damaged_line_is_named(line):
    with pytest.raises(RunFolderError, match=r"^line 2 of metrics\.jsonl is damaged: it .*; mend or remove"):
        read(to_line(ROW), line + "\n", to_line({"round": 3}))


@pytest.mark.parametrize("value", ["1", {}, [[]], True, -1, "9" * 400, 10**30, math.inf])
@pytest.mark.parametrize("name", sorted(ROW.keys() - {"anything"}))
def test_value_of_another_type_is_named(name, value):
    allowed = {"train-loss", "test-loss", "test-accuracy", "seconds", "macro-f1"}
    if (name in allowed and value in (-1, 10**30)) or (name == "bytes-down" and value == {}):
        return
    with pytest.raises(RunFolderError, match=f"^line 1 of metrics.jsonl is damaged: {name} = ") as caught:
        read(json.dumps(ROW | {name: value}) + "\n")
    assert len(str(caught.value)) < 200
