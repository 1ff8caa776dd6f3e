"""Following a run in Flower: what is shown of it, and how it ends."""

import io

import pytest
from rich.console import Console

from fedmr_flwr.errors import EngineError
from fedmr_flwr.launch import flower
from fedmr_flwr.report.display import Display
from fedmr_flwr.server.experiment import create_folder

ROW = {"seconds": 0.1, "replies": 2, "failures": 0}


class Link:
    """Plays a SuperLink that reports one status of every run, after so many failed attempts."""

    name = "local"
    text = ""

    def __init__(self, status, details="", failures=0):
        self.run, self.failures = {"status": status, "status-details": details}, failures

    def command(self, *_):
        if self.failures:
            self.failures -= 1
            raise EngineError("busy")
        return {"runs": [self.run]}


@pytest.fixture
def out(toy, monkeypatch):
    for name in ("_POLL_SECONDS", "_END_SECONDS"):
        monkeypatch.setattr(flower, name, 0)
    return create_folder(toy())


def follow(link, out, server_died=lambda: False):
    """Follow a run; return what is shown."""
    text = io.StringIO()
    shown = Display(3, Console(file=text, width=100))
    flower.follow(link, "7", out, shown, server_died, lambda: link.text, check_seconds=-1)
    return text.getvalue()


def test_each_round_is_shown_once(out):
    out.note(status="completed")
    for number in (1, 2):
        out.add_row({"round": number, **ROW})
    shown = follow(Link("finished:completed"), out)
    assert [line.split("  ")[0] for line in shown.splitlines()] == ["round 1/3", "round 2/3"]


def test_earlier_rounds_are_not_shown(out):
    out.note(status="completed", resumed=[{"after-round": 1, "problems": [], "versions": {}}])
    for number in (1, 2):
        out.add_row({"round": number, **ROW})
    shown = follow(Link("finished:completed"), out).splitlines()
    assert shown[0] == "resuming after round 1"
    assert [line.split("  ")[0] for line in shown[1:]] == ["round 2/3"]


def test_waiting_line_is_shown(out):
    out.note(status="completed", waiting="waiting: 1 of 2")
    assert follow(Link("finished:completed"), out) == "waiting: 1 of 2\n"


def test_failure_reason_from_the_manifest(out):
    out.note(status="failed", error="round 1: no good reply")
    with pytest.raises(EngineError, match="^round 1: no good reply$"):
        follow(Link("finished:failed", "something else"), out)


def test_failure_reason_from_flower(out):
    with pytest.raises(EngineError, match=f"^it is tired; see {out.log}$"):
        follow(Link("finished:failed", "Simulation failed with exception: it is tired"), out, lambda: True)


def test_failure_reason_from_flowers_log(out):
    link = Link("finished:failed", "Simulation failed with exception: Ending simulation.")
    link.text = 'Traceback (most recent call last):\n  File "a"\nOSError: the path is too long\n'
    with pytest.raises(EngineError, match=f"^Ending simulation: OSError: the path is too long; see {out.log}$"):
        follow(link, out, lambda: True)


def test_killed_servers_last_words_are_told(out):
    link = Link("running")
    link.text = "the last words\n"
    with pytest.raises(EngineError, match="out of memory: the last words; see "):
        follow(link, out, lambda: True)


def test_dead_server_is_reported(out):
    with pytest.raises(EngineError, match="died, perhaps out of memory"):
        follow(Link("running"), out, lambda: True)


@pytest.mark.parametrize(("failures", "found"), [(2, ("running", "")), (3, None)])
def test_status_is_asked_three_times(failures, found):
    link = Link("running", failures=failures)
    if found:
        assert flower.status(link, "7") == found
    else:
        with pytest.raises(EngineError, match="busy"):
            flower.status(link, "7")
