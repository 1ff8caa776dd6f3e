"""The page of a run or a comparison: whole, escaped, and in need of no other file."""

import re
from html.parser import HTMLParser

import pytest

from fedmr_flwr.analysis import page
from fedmr_flwr.analysis.studies import results, tables
from fedmr_flwr.config.loading import parse, to_yaml
from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.report import plots
from fedmr_flwr.runs.folder import RunFolder
from tests.support.curves import TWO, rows

NASTY = '<script>alert(1)</script> & "x"'


class Reader(HTMLParser):
    """Collects the text of a page, its tags, and the addresses in it; checks that tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.text, self.addresses, self.open, self.tags = "", [], [], set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text += text


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run whose names are hostile, with a picture of no content."""

    def draw(folder, form, to):
        (to / f"curves.{form}").write_text("<svg/>")
        return [to / f"curves.{form}"]

    monkeypatch.setattr(plots, "draw", draw)
    folder = RunFolder.create(tmp_path / "cmp" / "one", to_yaml(parse({"rounds": 6}, "test")))
    for row in rows([0.5, 0.7, 0.6]):
        folder.add_row(row | {"failures": 0, "replies": 4, "test-loss": 1.0})
    folder.note(status="failed", error=NASTY, title=NASTY, **{"data-sha256": "abc"})
    return folder


def test_run_page_is_whole_and_escaped(run):
    written = page.write(run.path)
    assert written == run.path / "report.html"
    found = Reader(written.read_text())
    assert "script" not in found.tags
    assert found.text.count(NASTY) >= 3, "title, heading and reason"
    assert len(found.addresses) == 1 and found.addresses[0].startswith("data:image/svg+xml;base64,")
    for words in ("60.00 %", "70.00 %", "round 4", "0.5000", "fedmr run config.yaml run-dir=NEW", "rounds: 6", "abc"):
        assert words in found.text, words
    assert not re.search(r"https?://|url\(|@import", written.read_text()), "nothing is fetched"


@pytest.fixture
def comparison(run):
    """The folder of a comparison with two strategies and two seeds."""
    folder = run.path.parent
    found = {results.RunKey("", name, at): rows for name, runs in TWO.items() for at, rows in enumerate(runs)}
    numbers = results.collect(found)
    tables.write(tables.statistics(numbers, [""], [*TWO], 2), numbers, folder)
    (folder / "command.txt").write_text("fedmr compare quickstart --strategies 'a&b'\n")
    (folder / "comparison.png").write_bytes(b"picture")
    return folder


def test_comparison_page_has_its_tables(comparison, run, tmp_path):
    run.note(status="completed", error=None)
    found = Reader(page.write(comparison, tmp_path / "a.html").read_text())
    for words in ("75.0 ± 7.1", "−31.3 [", "fedmr compare quickstart --strategies 'a&b'", "rounds: 6", "1 of 1 runs"):
        assert words in found.text, words
    assert [address[:22] for address in found.addresses] == ["data:image/png;base64,"]


def test_incomplete_runs_are_named(comparison):
    assert "one is not complete" in Reader(page.write(comparison).read_text()).text


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(RunFolderError, match=r"neither the config.yaml of a run nor the comparison.csv"):
        page.write(tmp_path)


def test_damaged_table_is_named(comparison):
    (comparison / "comparison.csv").write_text("cell,strategy\n,a\n")
    with pytest.raises(RunFolderError, match="a table in .* is damaged"):
        page.write(comparison)
