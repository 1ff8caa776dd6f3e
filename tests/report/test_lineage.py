import numpy as np
import pytest
from flwr.app import ConfigRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmr_flwr import FedMR
from fedmr_flwr.algorithms.indep import Indep
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.report import lineage
from fedmr_flwr.report.lineage import RunSpec
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.roster import RosterGrid

CLIENTS, UNITS, M = 7, 3, 4
LAYOUT = Layout.of({f"{name}.weight": np.zeros(CLIENTS, np.float32) for name in ("first", "second", "third")})
CODEC = Codec(LAYOUT)
NO_INTS = np.zeros(0, np.int64)


def row(number, clients, failed=(), slots=None):
    failures = [{"client": client, "kind": kind, "reason": ""} for client, kind in dict(failed).items()]
    return {"round": number, "slots": slots or list(range(len(clients))), "clients": clients, "failed": failures}


def sets(seen):
    """Clients by unit and slot."""
    return [[set(np.flatnonzero(clients).tolist()) for clients in slots] for slots in seen]


@pytest.fixture
def draw(monkeypatch):
    """Return a function that fixes the sources of a round's models."""
    drawn = {}
    monkeypatch.setattr(lineage, "sources", lambda seed, number, stage, units, slots: drawn[number])
    return lambda number, *sources: drawn.update({number: None if not sources else np.array(sources)})


def test_case_by_hand(draw):
    draw(2, [2, 1, 0], [2, 1, 0])
    draw(3, [1, 2, 0], [0, 2, 1])  # unit 0: slot 0 gets slot 1's; unit 1: slots 1 and 2 change places
    rows = [
        {"round": 1, "bad": True, "clients": [3, 4, 0]},  # nothing changes, so the sources of round 2 are void
        row(2, [0, 1, 2]),
        row(3, [3, 0, 4], failed={0: "no-reply", 3: "unsolicited"}),
    ]
    run = RunSpec("fedmr", 0, 0, units=2, slots=3, clients=5)
    (start, after_start), (end, after_end) = lineage.replay(rows, run)
    assert (start.round, end.round) == (2, 3)
    assert start.sources is None
    assert sets(after_start) == [[{0}, {1}, {2}]] * 2
    assert end.sources.tolist() == [[1, 2, 0], [0, 2, 1]]
    assert end.trained == {0: 3, 2: 4}, "client 0 failed; client 3's own reply was good"
    assert sets(after_end) == [[{1, 3}, {2}, {0, 4}], [{0, 3}, {2}, {1, 4}]]

    past = lineage.history(rows, run)
    assert [step.trained for step in past.steps] == [start.trained, end.trained]
    assert past.rounds.tolist() == [2, 3]
    assert past.by_unit.tolist() == [[1, 1, 1], [1, pytest.approx(10 / 6), 2]]
    assert past.by_model.tolist() == [[1, 1, 1], [1, pytest.approx(7 / 3), 3]]
    assert lineage.trace(past.steps, 2, slot=0).tolist() == [[1, 0], [0, 0]]
    assert lineage.trace(past.steps, 2, slot=2).tolist() == [[0, 1], [2, 2]]


def test_trace_ends_at_the_mean(draw):
    for number in (1, 2):
        draw(number)
    draw(3, [1, 2, 0])
    draw(4, [2, 1, 0])
    past = lineage.history([row(number, [0, 1, 2]) for number in (1, 2, 3, 4)], RunSpec("fedmr", 0, 1, 1, 3, 3))
    # Slot 0 got its unit from slot 2 before round 4, and that one from slot 0 before round 3.
    assert lineage.trace(past.steps, 1).tolist() == [[-1], [0], [2], [0]]


def test_the_mean_joins_all_slots():
    rows = [row(1, [0, 1]), row(2, [2, 1]), row(3, [3, 4])]
    steps = list(lineage.replay(rows, RunSpec("fedmr", 0, first_stage_rounds=1, units=1, slots=2, clients=6)))
    assert sets(steps[1][1]) == [[{0, 1, 2}, {0, 1}]]
    assert steps[1][0].sources is None
    assert steps[2][0].sources is not None


def test_indep_never_mixes():
    rows = [row(number, [number, number + 3]) for number in range(3)]
    *_, (step, seen) = lineage.replay(rows, RunSpec("indep", 0, 0, units=2, slots=2, clients=6))
    assert sets(seen) == [[{0, 1, 2}, {3, 4, 5}]] * 2
    assert step.sources.tolist() == [[0, 1]] * 2


def test_only_the_latest_steps_are_kept():
    rows = [row(number, [0, 1]) for number in range(1, 8)]
    run = RunSpec("fedmr", 0, 0, units=1, slots=2, clients=2)
    past = lineage.history(rows, run, keep=3)
    assert [step.round for step in past.steps] == [5, 6, 7]
    assert past.rounds.tolist() == list(range(1, 8))
    assert not past.begins
    assert lineage.history(rows, run, keep=7).begins


@given(seed=st.integers(0, 2**32 - 1), slots=st.integers(1, 6), stage=st.integers(0, 4), loss=st.floats(0, 0.9))
@settings(max_examples=30)
def test_no_client_is_lost_or_invented(seed, slots, stage, loss):
    rng = np.random.default_rng(seed)
    rows, trained = [], set()
    for number in range(1, 7):
        clients = rng.choice(8, slots, replace=False).tolist()
        failed = {client: "expired" for client in clients if rng.random() < loss}
        rows.append(row(number, clients, failed))
        trained |= set(clients) - set(failed)
    *_, (_, seen) = lineage.replay(rows, RunSpec("fedmr", seed, stage, UNITS, slots, 8))
    for unit in sets(seen):
        assert set().union(*unit) == trained


@pytest.mark.parametrize("stage", [1, 3])
def test_a_mean_of_all_holds_all(stage):
    rows = [row(number, list(range(5))) for number in range(1, 6)]
    past = lineage.history(rows, RunSpec("fedmr", 0, stage, UNITS, 5, 5))
    assert past.by_unit[0].tolist() == [1, 1, 1]
    assert (past.by_unit[1:] == 5).all()


def rows_and_populations(strategy, grid_of, answer, silent, rounds):
    """Train with clients that each leave a mark in a place of their own in every unit."""

    def reply(message, client):
        if (message.content["config"]["server-round"], client) in silent:
            raise RuntimeError("silent")
        marked = CODEC.decode(message.content["arrays"]).floats.reshape(UNITS, CLIENTS).copy()
        marked[:, client] += 1
        return answer(CODEC.encode(Packed(marked.ravel(), NO_INTS)))

    grid = RosterGrid(grid_of(reply, CLIENTS), CLIENTS)
    arrays = CODEC.encode(Packed(np.zeros(LAYOUT.size, np.float32), NO_INTS))
    rows, populations = [], []
    for number in range(1, rounds + 1):
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        exchange = grid.exchange(messages)
        judged = strategy.judge(exchange.replies)
        if not judged.good:
            rows.append({"round": number, "bad": True, "clients": exchange.clients})
            continue
        arrays, _ = strategy.aggregate(number, judged)
        failed = [vars(failure) for failure in judged.failures]
        rows.append({"round": number, **strategy.diagnostics, "clients": exchange.clients, "failed": failed})
        populations.append(np.stack([model.floats.reshape(UNITS, CLIENTS) for model in strategy.state.models], 1))
    return rows, populations


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (FedMR, {}),
        (FedMR, {"population": 6}),
        (FedMR, {"first_stage_rounds": 4}),
        (FedMR, {"first_stage_rounds": 3, "population": 5}),
        (Indep, {"population": 5}),
    ],
)
def test_replay_matches_the_strategies(grid_of, answer, kind, options):
    strategy = kind(clients_per_round=M, seed=3, layout=LAYOUT, **options)
    silent = {(number, client) for number in (1, 4, 7) for client in range(CLIENTS)}  # bad rounds
    silent |= {(2, 0), (2, 1), (3, 2), (6, 3), (6, 4), (8, 0), (8, 5), (8, 6)}
    rows, populations = rows_and_populations(strategy, grid_of, answer, silent, rounds=10)
    assert any(each.get("failed") for each in rows)
    stage = options.get("first_stage_rounds", 0)
    run = RunSpec(kind.__name__.lower(), 3, stage, UNITS, strategy.slots, CLIENTS)
    steps = list(lineage.replay(rows, run))
    assert [step.round for step, _ in steps] == [2, 3, 5, 6, 8, 9, 10]
    for (_, seen), population in zip(steps, populations, strict=True):
        np.testing.assert_array_equal(seen, population > 0)
