"""What nobody foresaw ends in one line, and its traceback in a file."""

import re
import tempfile
from pathlib import Path

import pytest

from fedmr_flwr.errors import DataError, SystemRefusal, UnexpectedError
from fedmr_flwr.runs.bugs import in_one_line


def test_fault_of_ours_is_one_line(tmp_path):
    with pytest.raises(UnexpectedError) as caught, in_one_line(tmp_path):
        raise KeyError("two\nlines")
    path = tmp_path / "traceback.txt"
    assert str(caught.value) == (
        f"this is a bug in fedmr_flwr: KeyError: 'two\\nlines'; the traceback is in {path}; please report it"
    )
    text = path.read_text()
    assert 'raise KeyError("two\\nlines")' in text
    assert "torch " in text, "with the versions"
    assert isinstance(caught.value.__cause__, KeyError), "for who calls it from Python"


@pytest.mark.parametrize("folder", [None, Path("/proc/nothing")])
def test_traceback_without_a_folder_is_kept(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UnexpectedError) as caught, in_one_line(folder):
        raise RuntimeError
    found = re.search(r"fedmr_flwr: RuntimeError; the traceback is in (\S+);", str(caught.value))
    assert "RuntimeError" in Path(found[1]).read_text()


def test_traceback_that_has_no_place_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(UnexpectedError, match=r"cannot be written \(No such file or directory\)"), in_one_line():
        raise ValueError("x")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "/tmp/x"), MemoryError()])
def test_refusal_of_the_system_is_no_bug(error, tmp_path):
    with pytest.raises(SystemRefusal, match=r"No space left on device: /tmp/x|out of memory"), in_one_line(tmp_path):
        raise error
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("error", [DataError("damaged"), KeyboardInterrupt(), SystemExit(3)])
def test_other_ends_stay_as_they_are(error, tmp_path):
    with pytest.raises(type(error)) as caught, in_one_line(tmp_path):
        raise error
    assert caught.value is error
