import numpy as np
import pytest

from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.layout import Packed
from fedmr_flwr.runs import checkpoint
from fedmr_flwr.runs.checkpoint import Checkpoint


def at(number):
    model = Packed(np.full(3, number, np.float32), np.array([number]))
    return Checkpoint(number, model, {"population.floats": np.full((2, 3), number, np.float32)})


def test_a_checkpoint_reads_back_and_the_last_few_are_kept(tmp_path):
    for number in (9, 10, 11, 100):
        path = checkpoint.save(tmp_path / "checkpoints", at(number))
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["round-000011.safetensors", "round-000100.safetensors"]
    back = checkpoint.load(path)
    assert back.round == 100
    np.testing.assert_array_equal(back.model.floats, at(100).model.floats)
    np.testing.assert_array_equal(back.model.ints, at(100).model.ints)
    assert list(back.state) == ["population.floats"]
    np.testing.assert_array_equal(back.state["population.floats"], at(100).state["population.floats"])


def test_a_damaged_or_missing_checkpoint_is_named(tmp_path):
    path = checkpoint.save(tmp_path / "checkpoints", at(1))
    path.write_bytes(path.read_bytes()[:-2])
    for broken in (path, tmp_path / "none.safetensors"):
        with pytest.raises(RunFolderError, match=f"cannot read the checkpoint .*{broken.name}"):
            checkpoint.load(broken)
