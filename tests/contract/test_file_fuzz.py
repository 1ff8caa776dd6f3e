"""Damaged files of every format: each is read as it was, or refused in one line; nothing else.

FEDMR_FUZZ=10000 tries so many damaged files of each format instead of a hundred.
"""

import gzip
import io
import json
import os
import random
import struct
import tarfile

import numpy as np
import pytest
from datasets import Dataset as Saved
from PIL import Image

from fedmr_flwr.client.state import ClientState
from fedmr_flwr.config import loading
from fedmr_flwr.config.data import Data
from fedmr_flwr.core.layout import Packed
from fedmr_flwr.data import datasets, idx, images, partition_files
from fedmr_flwr.data.base import Facts
from fedmr_flwr.data.own import ExampleFormat
from fedmr_flwr.deployment import commands, folders
from fedmr_flwr.errors import FedmrError
from fedmr_flwr.runs import checkpoint
from fedmr_flwr.runs.checkpoint import Checkpoint
from fedmr_flwr.runs.folder import Place, RunFolder
from fedmr_flwr.wire import npy
from tests.support.damage import damaged

COUNT = int(os.environ.get("FEDMR_FUZZ", 100))
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 17, (20, 8, 8), dtype=np.uint8)
LABELS = np.arange(20) % 10
FORM = ExampleFormat((1, 8, 8), 10, Facts())
ROW = {
    "round": 1, "seconds": 0.1, "clients": [1, 2], "slots": [0, 1], "replies": 2, "failures": 1, "test-accuracy": 0.5,
    "test-loss": 1.0, "bytes-down": {"arrays": 5}, "failed": [{"client": 1, "kind": "other", "reason": "x"}],
}  # fmt: skip


class Changed(AssertionError):
    """Damage was read as if it were the file."""


def idx_bytes():
    return struct.pack(">HBB3I", 0, 8, 3, 4, 8, 8) + RNG.integers(0, 256, 256, dtype=np.uint8).tobytes()


def npz_bytes(write):
    file = io.BytesIO()
    write(file, x_train=IMAGES, y_train=LABELS)
    return file.getvalue()


def of_checkpoint(which):
    def make(folder):
        model = Packed(np.arange(40, dtype=np.float32), np.zeros(1, np.int64))
        note = checkpoint.save(folder / "c", Checkpoint(7, model, {"x": np.ones(3)}))

        def read():
            found = checkpoint.load(note)
            if found.round != 7 or not (found.model.floats == model.floats).all() or [*found.state] != ["x"]:
                raise Changed

        return note.with_suffix(which), read

    return make


def of_client_state(folder):
    state = ClientState(folder)
    state.keep({"v": np.arange(20, dtype=np.float32)}, 3, 0, 0)

    def read():
        found = state.recall(3)
        if found is not None and not (found["v"] == np.arange(20)).all():
            raise Changed

    return folder / "round-000003.safetensors", read


def of_manifest(folder):
    out = RunFolder(folder)
    out.note(status="failed", rounds=3, seed=0, versions={"a": "1"}, **{"run-id": "0123456789abcdef"})
    return out.manifest, lambda: (out.status, out.identifier(), out.note(status="running"))


def of_metrics(folder):
    out = RunFolder(folder)
    for number in range(1, 6):
        out.add_row(ROW | {"round": number})

    def read():
        out.read_new_rows(Place())
        out.forget_rows_after(3)
        json.loads(f"[{','.join(out.metrics.read_text().splitlines())}]", parse_constant=pytest.fail)

    return out.metrics, read


def of_partition(folder):
    path = folder / "p.npz"
    partition_files.save([np.arange(10), np.arange(10, 25), np.arange(25, 40)], path)
    return path, lambda: partition_files.read_for(path, 40, 3)


def of_json_partition(folder):
    path = folder / "p.json"
    path.write_text(json.dumps({"train_data": {"0": [0, 1, 2], "1": [3, 4], "2": [5, 6, 7, 8]}}))
    return path, lambda: partition_files.read_for(path, 40, 3)


def of_npz(write):
    def make(folder):
        path = folder / "own.npz"
        path.write_bytes(npz_bytes(write))

        def read():
            for copy in folder.glob(".own*"):
                copy.unlink()
            datasets.read_examples(f"npz:{path}", Data(), FORM)

        return path, read

    return make


def of_cache(folder):
    source = folder / "own.npz"
    source.write_bytes(npz_bytes(np.savez))
    datasets.read_examples(f"npz:{source}", Data(), FORM)
    (path,) = folder.glob(".own*")

    def read():
        found, _ = datasets.read_examples(f"npz:{source}", Data(), FORM)
        if not ((found.inputs.numpy()[:, 0] == IMAGES).all() and (found.labels.numpy() == LABELS).all()):
            raise Changed

    return path, read


def of_idx(name, pack=bytes):
    def make(folder):
        (folder / name).write_bytes(pack(idx_bytes()))
        return folder / name, lambda: idx.read_idx(folder / name)

    return make


def of_image(suffix):
    def make(folder):
        Image.fromarray(RNG.integers(0, 256, (9, 7, 3), np.uint8)).save(path := folder / f"a{suffix}")
        return path, lambda: images.read([images.of_file(path)], 1, images.Shape(3, (8, 8)))

    return make


def of_table(folder):
    (path := folder / "a.csv").write_text(
        "a,b,label\n" + "".join(f'{at},"x, {at % 3}",{at % 2}\n' for at in range(12))
    )
    source = datasets.own_source(f"csv:{path}", Data())
    return path, lambda: source.read(source.find(folder, False))


def of_saved(which):
    def make(folder):
        texts = {"text": [f"t{at}" for at in range(20)], "label": [at % 2 for at in range(20)]}
        Saved.from_dict(texts).save_to_disk(folder / "set")
        (path,) = folder.glob(f"set/{which}")

        def read():
            source = datasets.own_source(f"hf:{folder / 'set'}", Data(size=4), 0)
            source.read(source.find(folder, False))

        return path, read

    return make


def of_leaf(name, x, y):
    def make(folder):
        content = {"users": ["a", "b"], "num_samples": [1, 1], "user_data": {u: {"x": x, "y": y} for u in "ab"}}
        for part in ("train", "test"):
            (folder / part).mkdir()
            (folder / part / "a.json").write_text(json.dumps(content))
        source = datasets.DATASETS[name]
        return folder / "train" / "a.json", lambda: source.read(source.find(folder, False))

    return make


def of_cifar(folder):
    source = datasets.DATASETS["cifar10"]
    path = folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for batch in source._batches:
            info = tarfile.TarInfo(f"cifar-10-batches-py/{batch}")
            info.size = 500
            tar.addfile(info, io.BytesIO(b"x" * 500))
    return path, lambda: source.read([path])


def of_configuration(folder):
    path = folder / "c.yaml"
    path.write_text(
        "rounds: 3\ndata: {name: digits}\ntraining: &a {lr: 1e-2}\nstrategy:\n  name: fedmr\n  unit: layer\n"
    )
    return path, lambda: loading.load(path)


def of_override(folder):
    (folder / "c.yaml").write_text("rounds: 3\n")
    path = folder / "override"
    path.write_bytes(b"training.lr=0.05")
    return path, lambda: loading.load(folder / "c.yaml", [path.read_bytes().decode("latin-1")])


def of_node(folder):
    path = folder / "node.yaml"
    path.write_text(
        "client: 0\nname: node-0\nsuperlink: 127.0.0.1\nfleet-port: 9092\nport: 8000\ndata: /x.npz\nstate: state\n"
    )
    return path, lambda: commands.supernode(folder, folders.read_node(folder))


def of_server(folder):
    path = folder / "server.yaml"
    path.write_text("hosts:\n- 127.0.0.1\nlisten: 0.0.0.0\nfleet-port: 9092\nport: 8000\n")
    return path, lambda: commands.superlink(folder, folders.read_server(folder))


def of_wire(folder):
    file = io.BytesIO()
    np.save(file, np.arange(64, dtype=np.float32))
    (folder / "a.npy").write_bytes(file.getvalue())
    return folder / "a.npy", lambda: npy.read((folder / "a.npy").read_bytes())


PIXELS = [(RNG.integers(0, 256, 784) / 255).round(3).tolist()]
FORMATS = {
    "checkpoint's tensors": of_checkpoint(".safetensors"),
    "checkpoint's note": of_checkpoint(".json"),
    "client state": of_client_state,
    "manifest": of_manifest,
    "metrics": of_metrics,
    "partition": of_partition,
    "JSON partition": of_json_partition,
    "npz": of_npz(np.savez),
    "compressed npz": of_npz(np.savez_compressed),
    "data cache": of_cache,
    "idx": of_idx("t-idx3-ubyte"),
    "idx.gz": of_idx("t-idx3-ubyte.gz", gzip.compress),
    "csv": of_table,
    "png": of_image(".png"),
    "jpeg": of_image(".jpg"),
    "gif": of_image(".gif"),
    "Arrow": of_saved("*.arrow"),
    "Arrow's state": of_saved("state.json"),
    "Arrow's columns": of_saved("dataset_info.json"),
    "femnist": of_leaf("femnist", PIXELS, [5]),
    "shakespeare": of_leaf("shakespeare", ["a" * 80, "b" * 80], ["c", "d"]),
    "cifar": of_cifar,
    "configuration": of_configuration,
    "override": of_override,
    "node.yaml": of_node,
    "server.yaml": of_server,
    "array on the wire": of_wire,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_file_is_read_or_refused(name, tmp_path):
    path, read = FORMATS[name](tmp_path)
    good, rng = path.read_bytes(), random.Random(name)
    for number in range(COUNT):
        bad = damaged(rng, good)
        path.unlink(missing_ok=True)  # another process may have mapped the old one
        path.write_bytes(bad)
        try:
            read()
        except FedmrError as error:
            assert "\n" not in str(error), bad
            assert len(str(error)) < 3000, bad
        except Exception as error:
            error.add_note(f"example {number} of {name}: {bad[:2000]!r}")
            raise
