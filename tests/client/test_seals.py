"""A client's seals: it opens what the deals have brought to its slot, and whatever else a server sends is refused."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord
from hypothesis import given
from hypothesis import strategies as st

from fedmr_flwr.client.seals import Seals
from fedmr_flwr.core.dealing import Dealing
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.core.population import average
from fedmr_flwr.core.recombination import gather
from fedmr_flwr.core.units import units
from fedmr_flwr.errors import SealError
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.npy import view
from fedmr_flwr.wire.sealed import SealedCodec, hash_initial
from fedmr_flwr.wire.sealing import UNTRAINED, Binding, Origin, seal

KEY, RUN = bytes(range(32)), "0123456789abcdef"
LAYOUT = Layout.of({"a.w": np.zeros(3, "f4"), "a.n": np.zeros(1, "i8"), "b.w": np.zeros(4, "f4")})
CODEC = Codec(LAYOUT)
INITIAL = Packed(np.arange(7, dtype="f4"), np.array([7]))
START = hash_initial(CODEC.encode(INITIAL))
# Three of five clients in a round, which train three of four slots.
DEALING = Dealing(3, 5, 3, 4, units(LAYOUT, "layer"), recombines=True)


def seals(skipped=(), dealing=DEALING, weighting="examples", initial=INITIAL, run=RUN):
    binding = Binding(run, LAYOUT.fingerprint, START, dealing.fingerprint)
    return Seals(dealing, CODEC, weighting, KEY, binding, tuple(skipped), initial)


def trained(number, slot):
    """The model that a client trains in a round and slot; in round 0 the initial one."""
    return Packed(INITIAL.floats + 100 * number + 10 * slot, INITIAL.ints + number) if number else INITIAL


def sealed(of, client, number, slot):
    record = of.sealed(client, number, CODEC.encode(trained(number, slot)))
    (model,) = SealedCodec(of.dealing.units, CODEC.wire).split(view(record["sealed"]))
    return model


def play(rounds, bad=(), dealing=DEALING):
    """Play rounds as an honest server does; return the sealed population, and where each of its units was trained."""
    codec = SealedCodec(dealing.units, CODEC.wire)
    models, origins = [codec.untrained()] * dealing.slots, [[(0, 0)] * len(dealing.units)] * dealing.slots
    for number in range(1, rounds + 1):
        if number in bad:
            continue
        models, origins = dealt(models, number, dealing), dealt(origins, number, dealing)
        for slot, client in enumerate(dealing.assign(number)):
            if client is not None:
                models[slot] = sealed(seals([each for each in bad if each < number], dealing), client, number, slot)
                origins[slot] = [(number, slot)] * len(dealing.units)
    return models, origins


def dealt(models, number, dealing=DEALING):
    deal = dealing.sources(number)
    return [*models] if deal is None else gather(models, range(len(dealing.units)), deal)


def whole(origins):
    """The model whose units were trained in these places."""
    floats, ints = np.empty(7, "f4"), np.empty(1, int)
    for unit, origin in zip(DEALING.units, origins, strict=True):
        for part in unit.floats:
            floats[part] = trained(*origin).floats[part]
        for part in unit.ints:
            ints[part] = trained(*origin).ints[part]
    return Packed(floats, ints)


def message(models, **config):
    return ConfigRecord(config), ArrayRecord({"sealed": SealedCodec(DEALING.units, CODEC.wire).join(models)})


def same(one, other):
    return np.array_equal(one.floats, other.floats) and np.array_equal(one.ints, other.ints)


@given(st.integers(1, 6), st.sets(st.integers(1, 6)))
def test_each_client_opens_what_was_dealt_to_its_slot(number, bad):
    bad = [each for each in bad if each < number]
    models, origins = play(number - 1, bad)
    models, origins = dealt(models, number), dealt(origins, number)
    for slot, client in enumerate(DEALING.assign(number)):
        if client is not None:
            config, arrays = message([models[slot]], **{"server-round": number})
            assert same(seals(bad).received(client, config, arrays, scores=False), whole(origins[slot]))


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_mean_is_that_of_the_units(weighting):
    models, origins = play(4, bad=[2])
    config, arrays = message(models, **{"sealed-dealt": 4, "sealed-examples": [1.0, 2.0, 3.0, 4.0]})
    expected = average([whole(each) for each in origins], [1, 2, 3, 4] if weighting == "examples" else None)
    assert same(seals([2], weighting=weighting).received(0, config, arrays, scores=True), expected)


def test_mean_of_a_run_that_has_not_begun_is_the_initial_model():
    untrained = [SealedCodec(DEALING.units, CODEC.wire).untrained()] * 4
    assert same(seals().mean(untrained, np.zeros(4), 0), INITIAL)


def refused(words, models, number, slot=0, **how):
    with pytest.raises(SealError, match=words):
        seals(**how).open(models[slot], slot, number, newest=number - 1)


def test_unit_of_another_slot_is_refused():
    models, _ = play(3)
    models = dealt(models, 4)
    for at in range(2):
        swapped = [*models[0]]
        swapped[at] = models[1][at]
        refused("it was repeated, swapped or held back", [swapped], 4)


def test_units_of_a_slot_cannot_change_places():
    same_size = Layout.of({"a.w": np.zeros(3, "f4"), "b.w": np.zeros(3, "f4")})
    codec, own = Codec(same_size), units(same_size, "layer")
    dealing = Dealing(0, 1, 1, 1, own, recombines=False)
    binding = Binding(RUN, same_size.fingerprint, "", dealing.fingerprint)
    of = Seals(dealing, codec, "uniform", KEY, binding, (), None)
    record = of.sealed(0, 1, codec.encode(Packed(np.arange(6, dtype="f4"), np.empty(0, int))))
    ((first, second),) = SealedCodec(own, codec.wire).split(view(record["sealed"]))
    assert of.open([first, second], 0, 2, newest=1).floats.tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(
        SealError, match="'a' of slot 0, which client 0 has sealed: unit 0 of round 1, slot 0, cannot"
    ):
        of.open([second, first], 0, 2, newest=1)


def test_unit_of_the_round_itself_is_refused():
    models, _ = play(4)
    slot, client = next((slot, client) for slot, client in enumerate(DEALING.assign(4)) if client is not None)
    with pytest.raises(SealError, match="of round 4, which is not over"):
        seals().received(client, *message([models[slot]], **{"server-round": 4}), scores=False)
    assert seals().open(models[slot], slot, 4, newest=4)


def test_unit_of_a_round_that_did_not_count_is_refused():
    dealing = replace(DEALING, recombines=False)  # so that the unit is in the right place
    models, _ = play(2, dealing=dealing)
    slot = next(slot for slot, client in enumerate(dealing.assign(2)) if client is not None)
    refused("repeated, swapped or held back", models, 3, slot, dealing=dealing, skipped=[2])


def test_other_history_is_refused():
    models, _ = play(3)
    slot = next(slot for slot, client in enumerate(DEALING.assign(3)) if client is not None)
    own = seals([1])
    with pytest.raises(SealError, match="cannot be opened"):
        own.open(models[slot], slot, 3, newest=3)


def test_another_seed_moves_no_unit():
    # With some seed the deal of round 2 takes any unit to any slot.
    (first, *_), _ = play(1, dealing=replace(DEALING, clients_per_round=4, clients=5))
    honest = replace(DEALING, clients_per_round=4, clients=5)
    for slot in range(4):
        lying = next(
            found for seed in range(10_000) if (found := replace(honest, seed=seed)) != honest
            and found.trace(0, slot, 2, 1, ()) == found.trace(1, slot, 2, 1, ()) == 0
        )  # fmt: skip
        refused("cannot be opened", {slot: first}, 2, slot, dealing=lying)


def test_unit_with_nan_is_refused_by_the_name_of_who_sealed_it():
    models, _ = play(1)
    slot, client = next((slot, client) for slot, client in enumerate(DEALING.assign(1)) if client is not None)
    content = np.full(4, np.nan, "f4").tobytes()
    bad = np.frombuffer(seal(KEY, seals().binding, Origin(1, slot), 1, content), np.uint8)
    models[slot] = [models[slot][0], bad]
    moved = dealt(models, 2)
    at = next(at for at, model in enumerate(moved) if model[1] is bad)
    assert at != slot
    with pytest.raises(SealError, match=f"'b' of slot {at}, which client {client} has sealed: it has NaN"):
        seals().open(moved[at], at, 2, newest=1)


def test_diverged_model_is_not_sealed():
    (client, *_) = (client for client in DEALING.assign(1) if client is not None)
    with pytest.raises(SealError, match="the trained model has NaN or infinite values"):
        seals().sealed(client, 1, CODEC.encode(Packed(np.full(7, np.inf, "f4"), INITIAL.ints)))


def test_client_that_is_not_drawn_neither_opens_nor_seals():
    (idle, *_) = {*range(5)} - {*DEALING.assign(1)}
    config, arrays = message([SealedCodec(DEALING.units, CODEC.wire).untrained()], **{"server-round": 1})
    with pytest.raises(SealError, match=f"asks client {idle} to train in round 1, for which it is not drawn"):
        seals().received(idle, config, arrays, scores=False)
    with pytest.raises(SealError, match="is not drawn"):
        seals().sealed(idle, 1, CODEC.encode(INITIAL))


def test_initial_model_must_be_there():
    (client, *_) = (client for client in DEALING.assign(1) if client is not None)
    config, arrays = message([SealedCodec(DEALING.units, CODEC.wire).untrained()], **{"server-round": 1})
    with pytest.raises(SealError, match="a unit is the initial model's, which is not there"):
        seals(initial=None).received(client, config, arrays, scores=False)


def test_client_trains_no_mean_and_scores_no_slot():
    models, _ = play(1)
    everything = {"server-round": 2, "sealed-dealt": 1, "sealed-examples": [1.0] * 4}
    (client, *_) = (client for client in DEALING.assign(2) if client is not None)
    with pytest.raises(SealError, match="a client trains the model of its own slot"):
        seals().received(client, *message(models, **everything), scores=False)
    del everything["sealed-dealt"]
    with pytest.raises(SealError, match="and scores the mean of all models"):
        seals().received(client, *message(dealt(models, 2)[:1], **everything), scores=True)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_mean_of_another_number_of_models_is_refused(count):
    models, _ = play(2)
    with pytest.raises(SealError, match=f"there are {count} sealed models, expected 4"):
        seals().mean([*models, models[0]][:count], np.ones(count), 2)


@pytest.mark.parametrize(
    "weights", [[0, 0, 0, 0], [1, 1, 1, -1], [1, 1, 1, np.nan], [1, 1, 1, np.inf], [1, 1, 1]], ids=str
)
def test_wrong_weights_are_refused(weights):
    models, _ = play(2)
    with pytest.raises(SealError, match="the numbers of examples are not the weights of a mean"):
        seals().mean(models, np.array(weights, float), 2)
    assert seals(weighting="uniform").mean(models, np.array(weights, float), 2), "they are not used"


@pytest.mark.parametrize("said", [-1, 3])
def test_population_of_an_earlier_round_is_not_of_a_later_one(said):
    models, _ = play(2)
    with pytest.raises(SealError, match=f"no unit is of round {said}, which is said to be the latest"):
        seals().mean(models, np.ones(4), said)


def test_population_of_initial_models_is_of_no_round():
    untrained = [[np.frombuffer(UNTRAINED, np.uint8)] * 2] * 4
    with pytest.raises(SealError, match="no unit is of round 2"):
        seals().mean(untrained, np.ones(4), 2)


def test_another_initial_model_is_refused(settings_of):
    record, settings = CODEC.encode(INITIAL), settings_of("privacy.sealed=true")
    of = Seals.of_run(settings, CODEC, KEY, RUN, record, START, (1,))
    assert same(of.initial, INITIAL)
    assert of.binding == Binding(RUN, LAYOUT.fingerprint, START, of.dealing.fingerprint)
    assert (of.skipped, of.key, of.weighting) == ((1,), KEY, "uniform")
    other = ArrayRecord({"floats": Array(INITIAL.floats + 1), "ints": record["ints"]})
    with pytest.raises(SealError, match="the initial model is not the one with which the run has begun"):
        Seals.of_run(settings, CODEC, KEY, RUN, other, START, (1,))
    assert Seals.of_run(settings, CODEC, KEY, RUN, ArrayRecord(), START, ()).initial is None
