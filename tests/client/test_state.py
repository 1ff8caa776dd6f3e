import random

import numpy as np
import pytest
import torch

from fedmr_flwr.client import app as client_module
from fedmr_flwr.client.state import ClientState
from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.runs import checkpoint
from fedmr_flwr.training.lane import TrainResult
from fedmr_flwr.training.rules import Outcome
from tests.support.runs import run


def number(server_round, life):
    return {"value": np.array([server_round, life], np.float32)}


def test_state_reads_back_exactly(tmp_path):
    state = ClientState(tmp_path / "client")
    assert state.recall(0) == {}
    # A convolution's weights lie in another order in memory than their shape says.
    turned = np.arange(12, dtype=np.float32).reshape(2, 3, 2).transpose(0, 2, 1)
    arrays = {"w": np.array([1.5, -0.0], np.float32), "n": np.array(7), "turned": turned}
    state.keep(arrays, 3, 0, 0)
    found = state.recall(3)
    assert {name: array.shape for name, array in found.items()} == {k: v.shape for k, v in arrays.items()}
    assert {name: array.tobytes() for name, array in found.items()} == {k: v.tobytes() for k, v in arrays.items()}


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "noise", "bit"])
def test_damaged_state_is_none(tmp_path, damage):
    state = ClientState(tmp_path)
    state.keep(number(3, 0), 3, 0, 0)
    (path,) = tmp_path.iterdir()
    if damage == "missing":
        path.unlink()
    else:
        content = path.read_bytes()
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        damaged = {"cut": content[:-1], "empty": b"", "noise": b"\xff" * len(content), "bit": flipped}
        path.write_bytes(damaged[damage])
    assert state.recall(3) is None


def test_lost_replies_are_forgotten(tmp_path):
    state = ClientState(tmp_path)
    state.keep(number(2, 0), 2, 0, 0)
    state.keep(number(5, 0), 5, 2, 0)  # its reply gets lost
    state.keep(number(9, 0), 9, 2, 0)
    assert state.recall(5) is None
    assert state.recall(2) is not None


def test_reset_keeps_what_a_resumed_run_needs(tmp_path):
    state = ClientState(tmp_path)
    state.keep(number(5, 0), 5, 0, 0)
    # All clients were reset after round 9, and a resumed run may go back to the checkpoint of round 8.
    state.keep(number(10, 0), 10, 0, 8)
    assert state.recall(5) is not None


def test_failed_write_is_one_line(tmp_path):
    (tmp_path / "client").write_text("a file")
    with pytest.raises(RunFolderError, match="cannot write .*client"):
        ClientState(tmp_path / "client").keep(number(1, 0), 1, 0, 0)


def test_training_gets_last_good_state(toy, monkeypatch):
    settings = toy("strategy.name=moon", "clients=4", "clients-per-round=2", "rounds=8", "checkpoint-every=1")
    known = {}
    spoiled = []

    def fit(model, dataset, examples, training, rng, rule, received, kept, precision):
        client = examples.inputs.numpy().tobytes()
        assert int(kept.get("n", 0)) == known.get(client, 0)
        done = training_fit(model, dataset, examples, training, rng)
        number = fit.calls = fit.calls + 1
        if number == 6:
            spoiled.append(client)
            torch.nn.init.constant_(model.classifier.weight, torch.nan)
        else:
            known[client] = number
        return TrainResult(done.examples, done.loss, Outcome(kept={"n": np.array(number)}))

    fit.calls = 0
    training_fit = client_module.fit
    monkeypatch.setattr(client_module, "fit", fit)
    out = run(settings)
    assert fit.calls == 16
    assert sum(row["failures"] for row in out.read_rows()) == len(spoiled) == 1


@pytest.mark.parametrize("seed", range(6))
def test_state_survives_any_history(tmp_path, seed):
    """Servers are killed and continue from one of two checkpoints; replies get lost; a client takes part at times."""
    rng = random.Random(seed)
    every, state = rng.choice([1, 3, 7]), ClientState(tmp_path)
    last, checkpoints = (0, None), {0: (0, None)}  # round and value of the last good reply
    server_round, life = 1, 0
    for _ in range(300):
        if rng.random() < 0.5:  # it takes part
            found = state.recall(last[0])
            assert found is not None
            if last[0]:
                np.testing.assert_array_equal(found["value"], number(*last)["value"])
            resumable = checkpoint.oldest(server_round, every)
            state.keep(number(server_round, life), server_round, last[0], resumable)
            assert len(list(tmp_path.iterdir())) <= 2 * every + 2
            if rng.random() < 0.7:
                last = server_round, life
        if server_round % every == 0:
            checkpoints[server_round] = last
            checkpoints = dict(sorted(checkpoints.items())[-checkpoint.KEPT :])
        server_round += 1
        if rng.random() < 0.1:
            done = rng.choice([*checkpoints])
            checkpoints = {at: kept for at, kept in checkpoints.items() if at <= done}
            server_round, last, life = done + 1, checkpoints[done], life + 1


@pytest.mark.parametrize(
    ("server_round", "every", "oldest"),
    [(1, 10, 0), (20, 10, 0), (21, 10, 10), (30, 10, 10), (31, 10, 20), (4, 1, 2)],
)
def test_oldest_kept_checkpoint(server_round, every, oldest):
    assert checkpoint.oldest(server_round, every) == oldest
