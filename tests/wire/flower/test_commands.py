"""Flower's command line and the environment of its processes."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedmr_flwr.errors import EngineError
from fedmr_flwr.wire.flower import commands, environment

PACKAGE = Path(commands.__file__).parents[2]


@pytest.fixture
def answering(monkeypatch):
    """Return a function that lets `flwr` print something and returns a connection."""

    def answer(out, err="", status=0):
        done = SimpleNamespace(stdout=out, stderr=err, returncode=status)
        monkeypatch.setattr(commands.subprocess, "run", lambda *_, **__: done)
        return commands.Connection("local", {})

    return answer


def test_command_returns_its_json(answering):
    assert answering('a warning\n{"success": true, "run-id": 7}').command("run")["run-id"] == 7


@pytest.mark.parametrize(
    ("out", "err", "words"),
    [
        ('{"success": false, "error-message": "it is\\n tired"}', "", "`flwr list` failed: it is tired"),
        ("no JSON\nat all", "a traceback", "`flwr list` failed: no JSON at all a traceback"),
    ],
)
def test_command_failure_is_one_line(answering, out, err, words):
    with pytest.raises(EngineError) as failed:
        answering(out, err).command("list", "local")
    assert str(failed.value) == words


def test_log_is_without_colours(answering):
    assert answering("\x1b[91mERROR\x1b[0m: tired\n", "shown").log("7") == "ERROR: tired\n"


def test_unknown_log_is_its_reason(answering):
    assert answering("", "no such run", status=1).log("7") == "no such run"


def test_second_ctrl_c_is_ignored():
    code = (
        "import os, signal\nfrom fedmr_flwr.wire.flower.commands import ignoring_interrupts\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background processes inherit ignoring it
        "with ignoring_interrupts():\n    os.kill(os.getpid(), signal.SIGINT)\nprint('survived', flush=True)\n"
        "signal.raise_signal(signal.SIGINT)"
    )
    env = {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "survived\n"
    assert done.returncode in (130, -signal.SIGINT)


def test_commands_report_nothing():
    env = environment.environment()
    assert (env["FLWR_TELEMETRY_ENABLED"], env["FLWR_DISABLE_UPDATE_CHECK"]) == ("0", "1")
    assert env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_simulation_joins_no_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    env = environment.simulation_environment(Path("home"), "app", "local", (1, 2))
    assert env["RAY_ADDRESS"] == "local"


def test_localhost_uses_no_proxy(monkeypatch):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", "example.org")
    env = environment.simulation_environment(Path("home"), "app", "local", (1, 2))
    assert env["NO_PROXY"] == env["no_proxy"] == "example.org,127.0.0.1,localhost"


def test_memory_settings_are_kept(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    env = environment.simulation_environment(Path("home"), "app", "local", (1, 2))
    assert env["GLIBC_TUNABLES"] == "glibc.malloc.check=1"


def test_flwr_variables_stay_in_one_file():
    for path in PACKAGE.rglob("*.py"):
        literals = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        named = [text for text in literals if isinstance(text, str) and text.startswith("FLWR_")]
        assert not named or path == Path(environment.__file__), (path, named)
