import json

import numpy as np
import pytest

from fedmr_flwr import files
from fedmr_flwr.core.layout import Packed
from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.runs import checkpoint
from fedmr_flwr.runs.checkpoint import Checkpoint


def at(number):
    model = Packed(np.full(3, number, np.float32), np.array([number]))
    return Checkpoint(number, model, {"0.floats": np.full((2, 3), number, np.float32)})


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def test_checkpoint_reads_back(folder):
    for number in (9, 10, 11, 100):
        note = checkpoint.save(folder, at(number))
    names = sorted(file.name for file in folder.iterdir())
    assert names == [f"round-{n:06d}.{suffix}" for n in (11, 100) for suffix in ("json", "safetensors")]
    back = checkpoint.load(note)
    assert back.round == 100
    np.testing.assert_array_equal(back.model.floats, at(100).model.floats, strict=True)
    np.testing.assert_array_equal(back.model.ints, at(100).model.ints, strict=True)
    assert list(back.state) == ["0.floats"]
    np.testing.assert_array_equal(back.state["0.floats"], at(100).state["0.floats"], strict=True)
    assert checkpoint.latest(folder)[0].round == 100


def test_no_checkpoint_is_none(folder):
    assert checkpoint.latest(folder) == (None, [])


def short(path):
    path.write_bytes(path.read_bytes()[:-2])


def one_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def gone(path):
    path.unlink()


def other(path):
    path.write_text("[1]")


@pytest.mark.parametrize("damage", [short, one_bit, empty, gone])
def test_damaged_checkpoint_falls_back(folder, damage):
    checkpoint.save(folder, at(1))
    note = checkpoint.save(folder, at(2))
    damage(note.with_suffix(".safetensors"))
    found, problems = checkpoint.latest(folder)
    assert found.round == 1
    assert len(problems) == 1
    assert "round-000002" in problems[0]


@pytest.mark.parametrize("damage", [short, empty, other])
def test_damaged_note_falls_back(folder, damage):
    checkpoint.save(folder, at(1))
    damage(checkpoint.save(folder, at(2)))
    found, problems = checkpoint.latest(folder)
    assert (found.round, len(problems)) == (1, 1)


def test_all_damaged_is_an_error(folder):
    for number in (1, 2):
        one_bit(checkpoint.save(folder, at(number)).with_suffix(".safetensors"))
    with pytest.raises(RunFolderError, match="no checkpoint in .* can be read: .*checksum"):
        checkpoint.latest(folder)


@pytest.mark.parametrize("fails_at", range(1, 5))
def test_failed_write_keeps_the_last(folder, monkeypatch, fails_at):
    """Stop at each of the four steps: tensors flushed, folder flushed, note flushed, folder flushed."""
    checkpoint.save(folder, at(1))
    steps = []

    def stop(descriptor):
        steps.append(descriptor)
        if len(steps) == fails_at:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", stop)
        with pytest.raises(
            RunFolderError, match="cannot write .*round-000002.*: No space left on device; free some space"
        ):
            checkpoint.save(folder, at(2))
    found, problems = checkpoint.latest(folder)
    assert found.round == (2 if fails_at == 4 else 1), "the note is in place only in the last step"
    assert problems == []
    assert not list(folder.glob("*.tmp"))
    checkpoint.save(folder, at(2))
    assert checkpoint.latest(folder)[0].round == 2


def test_note_holds_the_checksum(folder):
    note = checkpoint.save(folder, at(3))
    facts = json.loads(note.read_text())
    import hashlib

    assert facts == {"round": 3, "sha256": hashlib.sha256(note.with_suffix(".safetensors").read_bytes()).hexdigest()}


def test_leftovers_are_removed(folder):
    for number in (10, 13):
        note = checkpoint.save(folder, at(number))
    one_bit(note.with_suffix(".safetensors"))
    (folder / "round-000014.safetensors").write_bytes(b"killed before the note")
    (folder / "round-000015.safetensors.tmp").write_bytes(b"killed while writing")
    found, _ = checkpoint.latest(folder)
    checkpoint.forget_after(folder, found.round)
    assert sorted(file.name for file in folder.iterdir()) == ["round-000010.json", "round-000010.safetensors"]
    checkpoint.save(folder, at(20))
    assert checkpoint.latest(folder)[0].round == 20
    one_bit(folder / "round-000020.safetensors")
    assert checkpoint.latest(folder)[0].round == 10, "the good one before it was kept"


def test_note_of_another_round_is_refused(folder):
    note = checkpoint.save(folder, at(17))
    note.write_text(note.read_text().replace("17", "27"))
    with pytest.raises(RunFolderError, match="cannot read .*: its tensors are of round 17"):
        checkpoint.load(note)


def test_renamed_checkpoint_is_refused(folder):
    note = checkpoint.save(folder, at(17))
    note.with_suffix(".safetensors").rename(folder / "round-000018.safetensors")
    with pytest.raises(RunFolderError, match="cannot read .*: its tensors are of round 17"):
        checkpoint.load(note.rename(folder / "round-000018.json"))


@pytest.mark.parametrize("value", ["1e400", "null", "[]", '"17"', "17.5", "{}"])
def test_note_with_an_odd_round_is_one_line(folder, value):
    note = checkpoint.save(folder, at(17))
    note.write_text(note.read_text().replace("17", value, 1))
    with pytest.raises(RunFolderError, match="cannot read"):
        checkpoint.load(note)


def test_files_of_the_user_stay(folder):
    checkpoint.save(folder, at(1))
    own = [
        "best.safetensors",
        "round-best.json",
        "round-000001.safetensors.bak",
        "notes.txt",
        "round-000001-copy.json",
    ]
    for name in own:
        (folder / name).write_bytes(b"mine")
    for number in range(2, 6):
        checkpoint.save(folder, at(number))
    found, problems = checkpoint.latest(folder)
    checkpoint.forget_after(folder, found.round)
    assert (found.round, problems) == (5, [])
    assert {path.name for path in folder.iterdir() if path.read_bytes() == b"mine"} == set(own)


def test_rounds_of_seven_digits_are_in_order(folder):
    for number in (999_998, 999_999, 1_000_000):
        checkpoint.save(folder, at(number))
    assert checkpoint.latest(folder)[0].round == 1_000_000
