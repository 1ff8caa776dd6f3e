"""The examples of the documents: Python runs as printed, each command is accepted by the program that it calls."""

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from flwr.app import Array, ArrayRecord
from flwr.cli.app import app as flower
from typer.core import TyperGroup

from fedmr_flwr import cli
from fedmr_flwr.analysis.studies.plan import plan
from fedmr_flwr.analysis.studies.study import study_of
from fedmr_flwr.cli.arguments import engine_overrides
from fedmr_flwr.config.identity import check_resumable
from fedmr_flwr.config.loading import load
from fedmr_flwr.data import partitions

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Commands that are not looked at, each with the reason.
NOT_RUN = {
    "pip install": "needs the package index",
    "ray start": "makes a cluster of several machines",
    "export": "sets variables of the shell",
    "cd": "to a folder that an earlier command has made",
    "./preprocess.sh": "LEAF's own script, which downloads",
}
# Python blocks that are only compiled, each with the reason.
NOT_EXECUTED = {"def good_enough(": "should_stop came with Flower 1.43, which the pinned versions are not"}
# What a page writes for a file of its reader's.
READERS_FILES = {"FILE", "conf.yaml", "mine.yaml"}
# Blocks that are a part of a file of the package see what is there already.
PARTS_OF_FILES = {"def _stratified(": partitions}


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(block: str) -> Iterator[list[str]]:
    """Yield the words of each command of a block, with its variables filled in."""
    values: dict[str, str] = {}
    for line in block.replace("\\\n", " ").splitlines():
        line = re.sub(r"\$(\w+)", lambda match: values.get(match[1], match[0]), line)
        words = shlex.split(line, comments=True)
        if len(words) == 1 and (match := re.fullmatch(r"(\w+)=(.*)", words[0])):
            values[match[1]] = match[2]
        elif words:
            yield words


SHELL = {
    f"{page.name}: {shlex.join(words)}": words
    for page in PAGES
    for block in blocks(page, "bash")
    for words in commands(block)
}
RUN = {name: words for name, words in SHELL.items() if not any(" ".join(words).startswith(text) for text in NOT_RUN)}


def test_commands_that_are_left_out_exist():
    left_out = [" ".join(words) for name, words in SHELL.items() if name not in RUN]
    assert [text for text in NOT_RUN if not any(words.startswith(text) for words in left_out)] == []


def parse(app: typer.Typer, words: list[str]) -> tuple[str, dict]:
    """Return the name and the parameters of a command, as its program reads them."""
    command, name = typer.main.get_command(app), ""
    while isinstance(command, TyperGroup):
        name, command, words = command.resolve_command(typer.Context(command), words)
    return name, command.make_context(name, [*words]).params


def check_fedmr(words: list[str], folder: Path) -> None:
    name, given = parse(cli.app, words)
    overrides = [*(given.get("overrides") or []), *engine_overrides(given.get("engine"), given.get("superlink"))]
    if name == "resume":
        check_resumable(overrides)
    elif name == "compare":
        confs = [word for word in given["arguments"] if "=" not in word]
        overrides += [word for word in given["arguments"] if "=" in word]
        study = study_of(confs, given["strategies"], given["seeds"], given["grid"] or [], given["target"])
        assert plan(study, overrides, folder)
    elif "conf" in given:
        load(given["conf"], overrides)


def check_flwr(words: list[str], folder: Path) -> None:
    _, given = parse(flower, words)
    for config in given.get("run_config_overrides") or []:
        values = dict(text.split("=", 1) for text in shlex.split(config))
        load(values.get("conf", "quickstart"), values.get("set", "").split())


def check_make(words: list[str], folder: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(words) <= set(targets)


def check_python(words: list[str], folder: Path) -> None:
    script = (ROOT / words[0]).read_text(encoding="utf-8")
    assert all(word.lstrip("-").replace("-", "_") in script for word in words if word.startswith("--"))


CHECKS = {"fedmr": check_fedmr, "flwr": check_flwr, "make": check_make, "python": check_python}


@pytest.mark.parametrize("name", RUN)
def test_command_is_accepted(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *words = ["quickstart" if word in READERS_FILES else word for word in RUN[name]]
    CHECKS[program](words, tmp_path)


# Those that train nothing take a moment.
VIEWS = [words[1:] for words in RUN.values() if words[0] == "fedmr" and words[1] in ("data", "partition", "units")]


@pytest.mark.slow
@pytest.mark.parametrize("words", VIEWS, ids=" ".join)
def test_view_runs(words, fedmr):
    words = ["quickstart" if word in READERS_FILES else word for word in words]
    status, _, said = fedmr(words[0], words[1].removeprefix("conf/").removesuffix(".yaml"), *words[2:])
    assert status == 0 and "error" not in said, said


@pytest.fixture
def flower_app(grid_of, answer):
    """What a Flower app has when it makes a strategy: a Grid, and the first arrays."""

    def reply(message, client):
        arrays = message.content["arrays"]
        return answer(ArrayRecord({name: Array(array.numpy() + client) for name, array in arrays.items()}))

    arrays = {f"{layer}.weight": Array(np.ones((3, 2), np.float32)) for layer in ("first", "second")}
    return {"grid": grid_of(reply, clients=12), "arrays": ArrayRecord(arrays)}


PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.slow
@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.name)
def test_python_runs(page, flower_app, tmp_path, monkeypatch, no_pictures):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "example", **flower_app}
    for block in blocks(page, "python"):
        module = next((module for start, module in PARTS_OF_FILES.items() if block.startswith(start)), None)
        code = compile(block, page.name, "exec")
        if not block.startswith(tuple(NOT_EXECUTED)):
            exec(code, {**vars(module)} if module else names)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda path: path.stem)
def test_benchmark_imports_what_there_is(path):
    runpy.run_path(str(path), run_name="benchmark")
