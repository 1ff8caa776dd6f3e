"""The help texts, at the width of a usual terminal."""

import re
import sys

import pytest

from fedmr_flwr import cli

COMMANDS = [
    "", "init", "run", "resume", "compare", "tune", "plot", "data", "partition", "units", "flatness", "deploy",
    "deploy init", "deploy server", "deploy node",
]  # fmt: skip


@pytest.fixture(params=COMMANDS)
def text(request, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["fedmr", *request.param.split(), "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    return capsys.readouterr().out


def test_tour_names_existing_commands(text):
    for line in re.findall(r"^  fedmr .+", text.partition("Options:")[0], re.MULTILINE):
        assert line.split()[1] in COMMANDS


def test_shell_completes_commands(monkeypatch, capsys):
    for name, value in {"_FEDMR_COMPLETE": "complete_bash", "COMP_WORDS": "fedmr pa", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        cli.app([], prog_name="fedmr")
    assert capsys.readouterr().out.split() == ["partition"]


def test_lines_fit_80_columns(text):
    assert max(map(len, text.splitlines())) <= 80
    summaries = text.partition("Commands:")[2]
    assert "..." not in summaries


def test_brackets_have_no_backslash(text):
    assert "\\" not in text


def test_every_argument_is_described(text):
    usage, _, rest = text.partition("\n\n")
    for argument in set(re.findall(r"\b(CONF|DIR|NAME|OVERRIDES|RUN)\b", usage)):
        assert re.search(rf"\b{argument}\b", rest), argument


def test_every_option_is_described(text):
    options = text.partition("Options:")[2].partition("Commands:")[0]
    for line in options.splitlines():
        if line.startswith("  --"):
            assert re.match(r"  --\S+( [A-Z]+)?  +\w", line), line


@pytest.mark.parametrize(("arguments", "meant"), [("runn", "run"), ("deploy nod", "node")])
def test_mistyped_command_is_corrected_once(monkeypatch, capsys, arguments, meant):
    monkeypatch.setattr(sys, "argv", ["fedmr", *arguments.split()])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.count(f"Did you mean '{meant}'?") == 1
