import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from fedmr_flwr.data import cache


def arrays(value=1):
    return {"x": np.full((50, 3, 2, 2), value, np.uint8), "y": np.arange(50)}


@pytest.fixture
def files(tmp_path):
    """The files of a data set, in a folder of their own."""
    (tmp_path / "data").mkdir()
    found = [tmp_path / "data" / name for name in ("a.bin", "b.bin")]
    for file in found:
        file.write_bytes(b"1234")
    return found


@pytest.fixture
def reader():
    """A function that reads and counts how often it did."""

    def read():
        read.calls += 1
        return arrays(read.value)

    read.calls, read.value = 0, 1
    return read


def test_files_are_read_once(files, reader):
    for _ in range(3):
        found = cache.shared("toy", files, reader)
        assert (found["x"].dtype, found["y"].dtype) == (torch.uint8, torch.int64)
        for name, array in arrays().items():
            np.testing.assert_array_equal(found[name].numpy(), array)
    assert reader.calls == 1
    assert sorted(path.name for path in files[0].parent.iterdir()) == [".toy.safetensors", "a.bin", "b.bin"]


@pytest.mark.parametrize("change", ["content", "content of the same size and time", "time", "other file"])
def test_outdated_copy_is_replaced(files, reader, change):
    first = cache.shared("toy", files, reader)
    reader.value = 2
    if change == "content":
        files[1].write_bytes(b"12345")
    elif change.endswith("same size and time"):
        before = files[1].stat()
        files[1].write_bytes(b"4321")
        os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "time":
        os.utime(files[1], ns=(0, time.time_ns() - 10**9))
    else:
        files[1] = files[1].rename(files[1].with_name("c.bin"))
    assert int(cache.shared("toy", files, reader)["x"].max()) == 2
    assert int(cache.shared("toy", files, reader)["x"].max()) == 2
    assert reader.calls == 2
    assert int(first["x"].max()) == 1, "who has mapped the old copy keeps it"


def test_symlinked_folder_shares_the_copy(files, reader, tmp_path):
    cache.shared("toy", files, reader)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    cache.shared("toy", [tmp_path / "link" / file.name for file in files], reader)
    assert reader.calls == 1


def test_copy_lies_in_the_outer_folder(files, reader, tmp_path):
    inner = [tmp_path / "leaf" / part / "a.json" for part in ("train", "test")]
    for file in inner:
        file.parent.mkdir(parents=True)
        file.write_text("1")
    cache.shared("toy", inner, reader)
    assert (tmp_path / "leaf" / ".toy.safetensors").exists()


def test_only_old_leftovers_are_removed(files, reader):
    left, living = (files[0].with_name(f".toy.safetensors.{name}") for name in ("left", "living"))
    for path in (left, living):
        path.mkdir()
        (path / "copy").write_bytes(b"half")
    os.utime(left, (0, time.time() - 7200))
    cache.shared("toy", files, reader)
    assert living.exists() and not left.exists()


@pytest.mark.slow
def test_concurrent_writers_make_one_copy(files):
    code = "import sys, pathlib; from tests_of_cache import make; make([pathlib.Path(name) for name in sys.argv[1:]])"
    (files[0].parent.parent / "tests_of_cache.py").write_text(
        "import numpy as np\nfrom fedmr_flwr.data import cache\n"
        "def make(files):\n"
        "    found = cache.shared('toy', files, lambda: {'x': np.full((1000, 1000), 3, np.uint8)})\n"
        "    assert int(found['x'].long().sum()) == 3_000_000\n"
    )
    env = os.environ | {"PYTHONPATH": str(files[0].parent.parent)}
    command = [sys.executable, "-c", code, *map(str, files)]
    processes = [subprocess.Popen(command, env=env) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert [path.name for path in files[0].parent.glob(".toy*")] == [".toy.safetensors"]


def test_needs_no_home_folder(reader, tmp_path, monkeypatch, caplog):
    def no_home():
        raise RuntimeError("no home")

    monkeypatch.setattr(cache.Path, "home", no_home)
    for name in ("plain", "odd \udcff"):  # bytes that are not UTF-8
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.bin").write_bytes(b"1")
        for _ in range(2):
            assert int(cache.shared("toy", [folder / "a.bin"], reader)["x"].sum()) == 600
    assert reader.calls == 3, "what cannot be mapped is read each time, and said"
    assert "cannot write a shared copy of toy" in caplog.text


@pytest.mark.parametrize("damage", [b"", b"\xff" * 100, "half"])
def test_damaged_copy_is_replaced(files, reader, damage):
    cache.shared("toy", files, reader)
    path = files[0].with_name(".toy.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "half" else damage)
    assert int(cache.shared("toy", files, reader)["x"].sum()) == 600
    assert reader.calls == 2
    assert path.read_bytes() == content


def test_copy_is_readable_by_all(files, reader):
    files[0].chmod(0o444)
    cache.shared("toy", files, reader)
    assert files[0].with_name(".toy.safetensors").stat().st_mode & 0o777 == 0o644


def test_copy_may_lie_in_the_home(files, reader, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    beside = files[0].with_name(".toy.safetensors")
    beside.mkdir()  # no file can take its place, whoever one is
    for _ in range(2):
        assert int(cache.shared("toy", files, reader)["x"].sum()) == 600
    assert reader.calls == 1
    assert len([*(tmp_path / "home").rglob(".toy.safetensors")]) == 1


def test_no_writable_place_is_logged(files, reader, tmp_path, monkeypatch, caplog):
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    files[0].with_name(".toy.safetensors").mkdir()
    assert int(cache.shared("toy", files, reader)["x"].sum()) == 600
    assert "cannot write a shared copy of toy" in caplog.text
    assert not [path for path in files[0].parent.iterdir() if path.name.startswith(".toy.safetensors.")]


def test_tensors_are_writable(files, reader):
    found = cache.shared("toy", files, reader)
    found["x"][torch.tensor([3, 1])] += 1  # a copy; the mapping is private in any case
    found["x"][0] = 7
    assert int(cache.shared("toy", files, reader)["x"].max()) == 1


_PROCESS = """
import sys, time, psutil, torch
from fedmr_flwr.config.data import Data
from fedmr_flwr.data import datasets

datasets.load(Data(name="digits"), None)  # imports are not what is measured
before = psutil.Process().memory_full_info().uss
data = datasets.load(Data(name="npz:large.npz"), __import__("pathlib").Path(sys.argv[1]))
data.train.inputs.max()  # touches every page
print(psutil.Process().memory_full_info().uss - before, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_processes_share_memory(tmp_path):
    rng = np.random.default_rng(0)
    x_train = rng.integers(0, 256, (50_000, 3, 32, 32), dtype=np.uint8)  # as large as CIFAR
    labels = rng.integers(0, 10, 50_000)
    np.savez(tmp_path / "large.npz", x_train=x_train, y_train=labels, x_test=x_train[:10_000], y_test=labels[:10_000])
    command = [sys.executable, "-c", _PROCESS, str(tmp_path)]
    processes = []
    try:
        for _ in range(2):  # the first makes the copy
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            processes.append(subprocess.Popen(command, **pipes))
            added = int(processes[-1].stdout.readline())
        assert added < x_train.nbytes / 10, f"the second process added {added / 1e6:.1f} MB"
    finally:
        for process in processes:
            process.communicate("")


def test_damaged_block_is_noticed(files, reader):
    cache.shared("toy", files, reader)
    (copy,) = files[0].parent.glob(".toy*")
    content = bytearray(copy.read_bytes())
    content[-100] ^= 1
    copy.unlink()
    copy.write_bytes(content)
    found = cache.shared("toy", files, reader)
    np.testing.assert_array_equal(found["y"].numpy(), arrays()["y"])
    assert reader.calls == 2


def test_sample_spans_large_arrays():
    large = np.zeros(10_000_000, np.uint8)
    known = cache._sample({"x": large})
    for place in (0, -1, 4095, -4096):
        other = large.copy()
        other[place] = 1
        assert cache._sample({"x": other}) != known
    assert cache._sample({"x": large.astype(np.int8)}) != known
    assert cache._sample({"y": large}) != known
    assert cache._sample({"x": large[:-1]}) != known


def test_copy_that_was_written_wrongly_is_not_used(files, reader, monkeypatch):
    save = cache.save_file

    def faulty(arrays, path, metadata):
        save({name: array + 1 for name, array in arrays.items()}, path, metadata)

    monkeypatch.setattr(cache, "save_file", faulty)
    assert int(cache.shared("toy", files, reader)["x"].max()) == 1
