"""Sealed runs: the same model as without seals, and a server that can neither read nor change what it deals."""

import io
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MessageType
from rich.console import Console

from fedmr_flwr.client.app import client_app
from fedmr_flwr.config.yaml_text import read_settings, write_yaml
from fedmr_flwr.errors import RunFolderError, SealError
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs import checkpoint
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server.experiment import Experiment
from fedmr_flwr.server.opening import open_run
from fedmr_flwr.server.run import run as serve
from fedmr_flwr.wire.grids.in_process import InProcessGrid
from fedmr_flwr.wire.npy import view
from fedmr_flwr.wire.sealing import new_key, read_key
from tests.support.tools import manifest

pytestmark = pytest.mark.usefixtures("no_pictures")

SEALED = "privacy.sealed=true"


def nothing(message, number, client):
    pass


def run(settings, before=nothing, after=nothing, prepared=None):
    """Run an experiment whose messages pass through `before`, and their replies through `after`."""

    def app(message, context):
        if message.metadata.message_type == MessageType.QUERY:
            return client_app(message, context)
        where = message.content["config"]["server-round"], context.node_config["partition-id"]
        before(message, *where)
        reply = client_app(message, context)
        after(reply, *where)
        return reply

    with Display(settings.rounds, Console(file=io.StringIO())) as display:
        return serve(settings, InProcessGrid(app, settings.clients), display, prepared)


def opened(out):
    """The hash of a sealed run's model."""
    open_run(out, read_key(out.sealing_key))
    return manifest(out.path)["model-sha256"]


def failing(*when):
    """Let clients fail in these rounds: (round, client), or (round, None) for all of it."""

    def before(message, number, client):
        if (number, client) in when or (number, None) in when:
            raise RuntimeError("failed")

    return before


@pytest.mark.parametrize(
    "overrides",
    [
        ["rounds=4"],
        ["strategy.name=indep", "wire=float16"],
        ["rounds=4", "strategy.population=5", "strategy.unit=tensor", "strategy.weighting=examples"],
        ["model.name=resnet20", "rounds=2", "clients=3", "data.train-examples=60"],
    ],
    ids=["fedmr", "indep in float16", "more models than clients", "with counters"],
)
def test_model_is_that_of_the_unsealed_run(toy, overrides):
    plain, sealed = run(toy(*overrides, run="plain")), run(toy(*overrides, SEALED, run="sealed"))
    assert not sealed.model.exists(), "the server cannot make it"
    assert opened(sealed) == manifest(plain.path)["model-sha256"]
    losses = [[row["train-loss"] for row in out.read_rows()] for out in (plain, sealed)]
    assert losses[0] == losses[1]


def test_failures_and_bad_rounds_are_those_of_the_unsealed_run(toy):
    overrides = ["rounds=6", "max-bad-rounds=2", "strategy.population=4"]
    before = failing((2, 0), (2, 1), (4, 2), (3, None))
    plain = run(toy(*overrides, run="plain"), before)
    sealed = run(toy(*overrides, SEALED, run="sealed"), before)
    rows = sealed.read_rows()
    assert [row.get("bad", False) for row in rows] == [False, False, True, False, False, False]
    assert any(row["failures"] for row in rows if not row.get("bad"))
    assert opened(sealed) == manifest(plain.path)["model-sha256"]


def test_resumed_run_is_the_same(toy):
    whole = run(toy("rounds=4", "strategy.population=4", run="whole"))
    begun = run(toy("rounds=2", "strategy.population=4", SEALED, run="begun"))
    begun.note(status="starting")
    resumed = run(toy("rounds=4", "strategy.population=4", SEALED, run="begun"), prepared=begun)
    assert opened(resumed) == manifest(whole.path)["model-sha256"]


def test_clients_score_the_mean_that_only_they_can_make(toy):
    overrides = ["rounds=2", "partition.test-fraction=0.2", "evaluation.clients=1"]
    plain, sealed = run(toy(*overrides, run="plain")), run(toy(*overrides, SEALED, run="sealed"))
    assert sealed.read_client_rows() == plain.read_client_rows()
    assert not any("test-accuracy" in row for row in sealed.read_rows())


def test_local_noise_is_sealed_with_the_model(toy):
    noise = ["clipping-norm=1", "sensitivity=2", "epsilon=100", "delta=0.001"]
    out = run(toy("rounds=2", SEALED, *(f"privacy.local-dp.{each}" for each in noise)))
    assert opened(out)
    assert [row["failures"] for row in out.read_rows()] == [0, 0]


# What a server, or who changes its disk, may do with the message of a client.


def change(message, sealed):
    message.content["arrays"]["sealed"] = Array(np.asarray(sealed, np.uint8))


def flip(message, models, config):
    models[-1][-1] = models[-1][-1].copy()
    models[-1][-1][-1] ^= 1
    change(message, np.concatenate(models[-1]))


def swap(message, models, config):
    models[-1][0] = models[-2][0]  # the unit of another slot
    change(message, np.concatenate(models[-1]))


def replay(message, models, config):
    change(message, np.concatenate(models[3]))  # a message of the round before


def truncate(message, models, config):
    change(message, np.concatenate(models[-1])[:-1])


def drop(message, models, config):
    change(message, np.concatenate(models[-1][:-1]))


def relabel(message, models, config):
    unit = models[-1][0].copy()
    unit[3] -= 1  # the round of its origin
    change(message, np.concatenate([unit, *models[-1][1:]]))


def forget(message, models, config):
    config["sealed-skipped"] = [1]


def other_run(message, models, config):
    config["run"] = "0123456789abcdef"


def other_round(message, models, config):
    config["server-round"] = 4


def other_start(message, models, config):
    config["sealed-start"] = "0" * 64


REFUSALS = {
    flip: "cannot be opened: it is damaged",
    swap: "repeated, swapped or held back",
    replay: "repeated, swapped or held back",
    truncate: "end after .* within a unit",
    drop: "end after .* within a unit|there are . sealed models|cut off",
    relabel: "repeated, swapped or held back|cannot be opened",
    forget: "repeated, swapped or held back|cannot be opened",
    other_run: "cannot be opened",
    other_round: "not drawn|repeated, swapped or held back|cannot be opened",
    other_start: "cannot be opened",
}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", REFUSALS, ids=[wrong.__name__ for wrong in REFUSALS])
def test_changed_message_is_refused_and_the_slot_keeps_its_units(toy, wrong):
    settings = toy("rounds=4", "strategy.unit=tensor", SEALED, run="sealed")
    codec, seen, victim = Experiment(settings).strategy.sealed_codec, [], []

    def before(message, number, client):
        (model,) = codec.split(view(message.content["arrays"]["sealed"]))
        seen.append(model)
        if len(seen) == 8:  # the second client of round 3
            victim.append(client)
            config = ConfigRecord({**message.content["config"]})
            message.content["config"] = config
            wrong(message, [[*model] for model in seen], config)

    out = run(settings, before)
    (failed,) = [failure for row in out.read_rows() for failure in row.get("failed", ())]
    assert (failed["client"], failed["kind"]) == (victim[0], "client-error")
    assert re.search(f"SealError.*({REFUSALS[wrong]})|RecordError.*({REFUSALS[wrong]})", failed["reason"])
    assert "\n" not in failed["reason"]
    plain = run(toy("rounds=4", "strategy.unit=tensor", run="plain"), failing((3, victim[0])))
    assert opened(out) == manifest(plain.path)["model-sha256"]


def test_initial_model_cannot_be_exchanged(toy):
    def before(message, number, client):
        if number == 1:
            arrays = message.content["arrays"]
            arrays["floats"] = Array(view(arrays["floats"]) + 1)

    settings = toy("rounds=2", "max-bad-rounds=1", SEALED)
    rows = run(settings, before).read_rows()
    reasons = [failure["reason"] for failure in rows[0]["failed"]]
    assert len(reasons) == 3
    assert all("SealError: the initial model is not the one with which the run has begun" in each for each in reasons)


def test_slot_cannot_be_given_to_another_client(toy):
    def before(message, number, client):
        message.content["config"] = ConfigRecord({**message.content["config"], "server-round": number + 10})

    out = toy("rounds=1", "max-bad-rounds=1", "clients=50", "partition.name=iid", SEALED)
    (row,) = run(out, before).read_rows()
    assert {"is not drawn" in failure["reason"] for failure in row["failed"]} == {True}


@pytest.mark.parametrize("what", ["an earlier reply", "another client's reply", "a cut one", "a plain model"])
def test_reply_of_another_place_is_refused(toy, what):
    seen = []

    def after(reply, number, client):
        arrays = reply.content["arrays"]
        seen.append(arrays["sealed"])
        if len(seen) == 6:  # the last one of round 2
            bytes_of = view(arrays["sealed"])
            found = {
                "an earlier reply": {"sealed": seen[2]},
                "another client's reply": {"sealed": seen[4]},
                "a cut one": {"sealed": Array(bytes_of[:-1])},
                "a plain model": {"floats": Array(np.zeros(9, np.float32))},
            }
            reply.content["arrays"] = ArrayRecord(found[what])
            seen.append(client)

    out = run(toy("rounds=2", SEALED), after=after)
    (failed,) = [failure for row in out.read_rows() for failure in row.get("failed", ())]
    assert (failed["client"], failed["kind"]) == (seen[-1], "malformed")
    plain = run(toy("rounds=2", run="plain"), failing((2, seen[-1])))
    assert opened(out) == manifest(plain.path)["model-sha256"]


def test_diverged_model_is_never_sealed(toy):
    out = run(toy("rounds=1", "max-bad-rounds=1", "training.lr=1e30", SEALED))
    assert {"the trained model has NaN" in each["reason"] for each in out.read_rows()[0]["failed"]} == {True}


def test_client_with_another_key_is_refused(toy):
    settings = toy("rounds=2", "max-bad-rounds=1", SEALED)

    def before(message, number, client):
        if number == 2:
            RunFolder(settings.run_dir).sealing_key.write_text(new_key())

    reasons = {failure["reason"] for failure in run(settings, before).read_rows()[1]["failed"]}
    assert all("which client" in reason and "sealed with another key" in reason for reason in reasons), reasons


def test_run_opens_with_its_own_key_alone(toy):
    out = run(toy("rounds=1", SEALED))
    with pytest.raises(SealError, match="another key"):
        open_run(out, bytes(32))
    assert not out.model.exists()


@pytest.mark.parametrize("where", ["..", "."], ids=["beside the folder", "in the folder"])
@pytest.mark.parametrize("key", ["model.name", "strategy.local-rule"])
def test_code_in_a_runs_folder_is_not_run_where_the_key_is(toy, monkeypatch, key, where):
    out = run(toy("rounds=1", SEALED))
    (out.path / "evil.py").write_text("raise SystemExit('it has the key')")
    section, _, name = key.partition(".")
    values = read_settings(out.config)
    values[section][name] = f"{out.path.name}.evil:Net" if where == ".." else "evil:Net"
    out.configure(write_yaml(values))
    monkeypatch.chdir(out.path / where)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])  # as the command does
    with pytest.raises(RunFolderError, match="names code in the run's folder, which is not run: .*evil:Net"):
        open_run(out, read_key(out.sealing_key))


def changed(out, **arrays):
    """Replace arrays of the state in a run's checkpoint, as its server may."""
    found, _ = checkpoint.latest(out.checkpoints)
    checkpoint.save(out.checkpoints, replace(found, state={**found.state, **arrays}))


def test_initial_model_is_not_opened_as_a_trained_one(toy):
    out = run(toy("rounds=1", SEALED))
    # Nothing of it needs a key: whoever has the folder could have put any model there.
    untrained = np.zeros(len(Experiment(toy(SEALED)).strategy.sealed_codec.untrained()) * 8, np.uint8)
    slots = {f"{slot}.sealed": untrained for slot in range(3)}
    changed(out, **slots, dealt=np.array(0))
    with pytest.raises(RunFolderError, match="has no model yet that a client has trained"):
        open_run(out, read_key(out.sealing_key))
    changed(out, **slots, dealt=np.array(1))
    with pytest.raises(SealError, match="no unit is of round 1"):
        open_run(out, read_key(out.sealing_key))
    assert not out.model.exists()


def test_one_slot_is_not_opened_as_the_mean_of_all(toy):
    out = run(toy("rounds=1", SEALED))
    changed(out, examples=np.ones(1))
    with pytest.raises(SealError, match="there are 1 sealed models, expected 3"):
        open_run(out, read_key(out.sealing_key))
    changed(out, examples=np.ones(4))
    with pytest.raises(RunFolderError, match=r"cannot read .*checkpoints: KeyError '3.sealed'"):
        open_run(out, read_key(out.sealing_key))


def test_opening_says_which_round_has_changed_the_model_last(toy):
    out = run(toy("rounds=4", "max-bad-rounds=2", SEALED), failing((3, None), (4, None)))
    assert open_run(out, read_key(out.sealing_key)) == 2


def test_only_a_sealed_run_is_opened(toy):
    with pytest.raises(RunFolderError, match="not the folder of a sealed run"):
        open_run(run(toy("rounds=1")), bytes(32))
