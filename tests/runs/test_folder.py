import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedmr_flwr import files
from fedmr_flwr.config.loading import resolve_paths
from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.runs.folder import Place, RunFolder
from fedmr_flwr.server.experiment import create_folder


def test_default_folder_is_new(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = toy("run-dir=null")
    first = resolve_paths(settings)
    assert first.run_dir.parent == tmp_path / "runs"
    assert "-digits-fedmr-seed0-" in first.run_dir.name
    create_folder(first)
    assert resolve_paths(settings).run_dir != first.run_dir
    assert resolve_paths(first) == first


def test_folder_is_created_once(toy):
    settings = toy()
    create_folder(settings)
    with pytest.raises(RunFolderError, match=r"already contains a run; choose another folder with run-dir=FOLDER"):
        create_folder(settings)


def test_foreign_folder_is_refused(toy):
    settings = toy()
    settings.run_dir.mkdir()
    (settings.run_dir / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="is not empty; choose another"):
        create_folder(settings)
    assert [path.name for path in settings.run_dir.iterdir()] == ["thesis.tex"]


def test_file_is_refused_as_folder(toy):
    settings = toy()
    settings.run_dir.write_text("a file")
    with pytest.raises(RunFolderError):
        create_folder(settings)
    assert settings.run_dir.read_text() == "a file"


def test_manifest_gathers_facts(toy):
    out = create_folder(toy("seed=4"))
    out.note(more=1)
    manifest = json.loads(out.manifest.read_text())
    assert (manifest["status"], manifest["seed"], manifest["more"]) == ("starting", 4, 1)
    assert {"python", "flwr", "torch", "fedmr-flwr"} <= set(manifest["versions"])
    out.fail(RuntimeError("no luck"))
    assert out.read_manifest()["error"] == "RuntimeError: no luck"
    out.fail(RuntimeError("and worse"))
    assert out.read_manifest()["error"] == "RuntimeError: no luck", "the first error is the cause"


def test_completed_run_cannot_fail(toy):
    out = create_folder(toy())
    out.note(status="completed")
    out.fail(KeyboardInterrupt())
    assert out.status == "completed"


def test_non_finite_numbers_become_null(toy):
    out = create_folder(toy())
    out.add_row({"round": 1, "train-loss": float("nan"), "similarity": 0.5, "spread": [float("inf"), 1.0]})
    written = json.loads(out.metrics.read_text())
    assert written == {"round": 1, "train-loss": None, "similarity": 0.5, "spread": [None, 1.0]}
    assert np.isnan(out.read_rows()[0]["train-loss"]), "and a number again for who shows it"
    assert np.isnan(out.read_rows()[0]["spread"][0])


def test_torn_metric_lines_are_ignored(toy):
    out = create_folder(toy())
    assert out.read_rows() == []
    out.add_row({"round": 1})
    with out.metrics.open("a") as file:
        file.write('{"round": 2')
    assert out.read_rows() == [{"round": 1}]


def test_reader_notices_that_the_metrics_were_replaced(toy):
    out = create_folder(toy())
    for number in range(1, 6):
        out.add_row({"round": number, "similarity": 0.123456789 / number})
    rows, seen = out.read_new_rows(Place())
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5]
    out.forget_rows_after(2)
    for number in range(3, 9):  # longer than what was read, and no line begins where the reader stopped
        out.add_row({"round": number, "similarity": 0.5})
    rows, seen = out.read_new_rows(seen)
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert out.read_new_rows(seen) == ([], seen)


def test_model_is_saved_with_its_hash(toy):
    import hashlib

    out = create_folder(toy())
    tensors = {"a": np.arange(3, dtype=np.float32), "n": np.array(2, np.int64)}
    digest = out.save_model(tensors)
    back = load_file(out.model)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, strict=True)
    assert digest == hashlib.sha256(out.model.read_bytes()).hexdigest()
    assert not list(out.path.glob("*.tmp"))


def full(*_):
    raise OSError(28, "No space left on device")


def test_full_disk_does_not_hide_a_failure(toy, monkeypatch):
    out = create_folder(toy())
    out.note(status="running")
    monkeypatch.setattr(files.os, "fsync", full)
    out.fail(RunFolderError("cannot write x: No space left on device"))
    assert (out.status, out.read_manifest()["error"]) == ("failed", "cannot write x: No space left on device")


def test_manifest_without_room_stays_whole(toy, monkeypatch):
    out = create_folder(toy())
    before = out.manifest.read_bytes()
    monkeypatch.setattr(files.os, "fsync", full)
    monkeypatch.setattr(files.os, "posix_fallocate", full)
    out.fail(RuntimeError("no luck"))
    assert out.manifest.read_bytes() == before


def test_folder_needs_no_hard_links(toy, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", refuse)
    assert create_folder(toy()).status == "starting"


def test_folder_needs_no_flush_of_folders(toy, monkeypatch):
    flush = files.os.fsync

    def refuse(descriptor):
        if files.os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(22, "Invalid argument")
        flush(descriptor)

    monkeypatch.setattr(files.os, "fsync", refuse)
    assert create_folder(toy()).status == "starting"


def test_failed_start_leaves_no_configuration(toy, monkeypatch):
    settings = toy()
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left"):
        create_folder(settings)
    assert not (settings.run_dir / "config.yaml").exists(), "the same command may be given again"


@pytest.mark.parametrize("method", ["touch", "replace"])
def test_failed_start_leaves_nothing(toy, monkeypatch, method):
    settings, works, calls = toy(), getattr(Path, method), []

    def second_fails(path, *arguments):
        calls.append(path)
        return full() if len(calls) == 2 else works(path, *arguments)

    monkeypatch.setattr(Path, method, second_fails)
    with pytest.raises(RunFolderError, match="No space left"):
        create_folder(settings)
    assert not [*settings.run_dir.iterdir()], "the same command may be given again"


@pytest.mark.parametrize("text", ["5", "[]", "nothing", "{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_damaged_manifest_is_one_line(toy, text):
    out = create_folder(toy())
    out.manifest.write_text(text)
    with pytest.raises(RunFolderError, match=r"manifest\.json: .*; delete it"):
        out.read_manifest()


def test_reason_and_remedy_are_one_sentence():
    place = files.reading("x", RunFolderError, "delete it")
    with pytest.raises(RunFolderError, match="^cannot read x: it is odd; delete it$"), place:
        raise ValueError("it is odd.")


@pytest.mark.parametrize("name", ["report.html.tmp", ".lock"])
def test_file_behind_a_link_is_not_overwritten(name, tmp_path):
    mine, folder = tmp_path / "mine", RunFolder.create(tmp_path / "run", "{}")
    mine.write_text("years of work")
    (folder.path / name).unlink(missing_ok=True)
    (folder.path / name).symlink_to(mine)
    with pytest.raises(RunFolderError, match="symbolic link"), folder.locked():
        files.write_aside(folder.path / "report.html", b"a page")
    assert mine.read_text() == "years of work"


@pytest.mark.parametrize(
    ("name", "fact"), [("strategy", "fedmr"), ("versions", ["1"]), ("title", 1), ("units", "ab"), ("units", [{}])]
)
def test_fact_of_another_type_is_named(name, fact, tmp_path):
    folder = RunFolder.create(tmp_path / "run", "{}")
    folder.manifest.write_text(json.dumps({name: fact}))
    with pytest.raises(RunFolderError, match=f"cannot read .*manifest.json: '{name}' has another type"):
        folder.read_manifest()
