"""What is printed when nobody can read it."""

import errno
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedmr_flwr.cli.output import Lasting, lasting_output

CONF = Path(__file__).parents[2] / "conf" / "quickstart.yaml"
RUN = [sys.executable, "-m", "fedmr_flwr.cli", "run", str(CONF), "--engine", "in-process", "model.name=mlp"]


@pytest.fixture
def broken():
    """Return a stream whose reader has gone away."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        yield stream


def test_text_without_a_reader_is_dropped(broken):
    lines = []
    stream = Lasting(broken, lines.append)
    for _ in range(3):
        stream.write("round 1\n")
        stream.flush()
    assert stream.problem.errno == errno.EPIPE
    assert lines == ["fedmr: the output cannot be written any more (Broken pipe); continuing without it"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_text_beyond_the_encoding_is_marked(encoding):
    below = io.BytesIO()
    stream = Lasting(io.TextIOWrapper(below, encoding=encoding), print)
    stream.write("α = 0.5, 名\n")
    stream.flush()
    assert below.getvalue() == b"? = 0.5, ?\n"


def test_full_disk_below_the_output_is_an_error(monkeypatch):
    with Path("/dev/full").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as end, lasting_output():
            print("a table", flush=True)
            raise SystemExit(0)
    assert end.value.code == 1


def test_absent_reader_is_no_error(monkeypatch, broken):
    monkeypatch.setattr(sys, "stdout", broken)
    with pytest.raises(SystemExit) as end, lasting_output():
        print("a table", flush=True)
        raise SystemExit(0)
    assert end.value.code == 0


def test_command_without_streams_ends_well(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with lasting_output():
        print("nowhere")


@pytest.mark.slow
def test_training_outlives_the_reader(tmp_path):
    command = [*RUN, "rounds=3", f"run-dir={tmp_path / 'run'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("run folder:")
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait() == 0
    assert said == "fedmr: the output cannot be written any more (Broken pipe); continuing without it\n"
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "completed"


@pytest.mark.slow
def test_closed_terminal_ends_the_run(tmp_path):
    out = tmp_path / "run"
    child, terminal = pty.fork()
    if not child:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the tests ignore it, and so would this process
        os.execv(sys.executable, [*RUN, "rounds=10000", f"run-dir={out}"])
    while not (out / "metrics.jsonl").exists():
        os.read(terminal, 1000)
        time.sleep(0.01)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["status"], manifest["error"]) == ("failed", "stopped by Ctrl-C, kill or a closed terminal")
