"""Arrays of sealed models: cut where they were joined, and refused if they are of another length."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord

from fedmr_flwr.core.layout import Layout
from fedmr_flwr.core.units import Unit, units
from fedmr_flwr.errors import RecordError
from fedmr_flwr.wire.npy import view
from fedmr_flwr.wire.sealed import SealedCodec, dealing_of, hash_initial, skipped_rounds
from fedmr_flwr.wire.sealing import MOST_BYTES, OVERHEAD, Binding, Origin, seal

LAYOUT = Layout.of({"a.w": np.zeros(3, "f4"), "a.n": np.zeros(1, "i8"), "b.w": np.zeros(4, "f4")})
UNITS = units(LAYOUT, "layer")
CODEC = SealedCodec(UNITS, np.float32)


def model(slot=0, trained=2):
    """A model whose first units are sealed, and the others untrained."""
    of, sizes = Binding("", "", "", ""), (20, 16)
    pieces = [
        np.frombuffer(seal(bytes(32), of, Origin(1, slot), at, bytes(sizes[at])), "u1") for at in range(trained)
    ]
    return [*pieces, *CODEC.untrained()[trained:]]


def cut(joined, count=1):
    return CODEC.split(np.frombuffer(joined, "u1"), count)


def joined(*models):
    return view(CODEC.join(models)).tobytes()


def test_models_are_cut_where_they_were_joined():
    models = [model(0), model(1, trained=1), model(2, trained=0)]
    found = cut(joined(*models), 3)
    assert [[piece.tobytes() for piece in each] for each in found] == [
        [piece.tobytes() for piece in each] for each in models
    ]
    assert CODEC.nbytes == len(joined(models[0])) == 2 * OVERHEAD + 3 * 4 + 8 + 4 * 4


@pytest.mark.parametrize("change", [-1, -20, 1, 8])
def test_other_lengths_are_refused(change):
    content = joined(model(), model())
    other = content[:change] if change < 0 else content + bytes(change)
    with pytest.raises(RecordError, match="end after|cut off|too many"):
        cut(other, 2)


@pytest.mark.parametrize("count", [1, 3])
def test_other_numbers_of_models_are_refused(count):
    with pytest.raises(RecordError, match="too many; expected 1|cut off"):
        cut(joined(model(), model()), count)


def test_reply_of_zeros_is_not_cut_to_its_end():
    # Each eight of them are a unit that nobody has trained: of a large model they would be millions of arrays.
    with pytest.raises(RecordError, match=r"sealed models have 7999984 bytes too many"):
        cut(bytes(8_000_000))


@pytest.mark.parametrize("values", [np.zeros(100, "i1"), np.zeros((1, 100), "u1")])
def test_other_arrays_are_refused(values):
    with pytest.raises(RecordError, match="expected a vector of bytes"):
        CODEC.split(values)


def test_record_without_sealed_models_is_refused():
    with pytest.raises(RecordError, match="server and clients need the same privacy.sealed"):
        CODEC.split_record(ArrayRecord({"floats": Array(np.zeros(7, "f4"))}), 1)


def test_unit_that_is_too_large_is_refused():
    assert MOST_BYTES + OVERHEAD < 2**31, "more cannot be encrypted in one piece"
    at_most = Unit("large", ("large",), (slice(0, MOST_BYTES // 4),), ())
    beyond = Unit("large", ("large",), (slice(0, MOST_BYTES // 4 + 1),), ())
    assert SealedCodec([at_most], np.float32)
    with pytest.raises(RecordError, match="unit 'large' has .* bytes, too many to be sealed"):
        SealedCodec([beyond], np.float32)


def test_hash_is_of_the_whole_initial_model():
    whole = ArrayRecord({"floats": Array(np.zeros(7, "f4")), "ints": Array(np.zeros(1, "i8"))})
    changed = [
        ArrayRecord({**whole, "floats": Array(np.ones(7, "f4"))}),
        ArrayRecord({**whole, "ints": Array(np.ones(1, "i8"))}),
        ArrayRecord({"floats": whole["floats"]}),
    ]
    assert len({hash_initial(each) for each in [whole, *changed]}) == 4


@pytest.mark.parametrize(
    ("config", "expected"),
    [({}, ()), ({"sealed-skipped": [1, 4]}, (1, 4)), ({"sealed-skipped": [0.5]}, ()), ({"sealed-skipped": 3}, ())],
)
def test_skipped_rounds_are_numbers(config, expected):
    assert skipped_rounds(ConfigRecord(config)) == expected


def test_deals_are_those_of_the_settings(settings_of):
    run = ["seed=5", "clients=6", "clients-per-round=3"]
    found = dealing_of(settings_of(*run, "strategy.population=4", "strategy.unit=tensor"), LAYOUT)
    assert (found.seed, found.clients, found.clients_per_round, found.slots) == (5, 6, 3, 4)
    assert found.recombines
    assert [unit.name for unit in found.units] == ["a.w", "a.n", "b.w"]
    still = dealing_of(settings_of(*run, "strategy.name=indep"), LAYOUT)
    assert (still.slots, still.recombines, [unit.name for unit in still.units]) == (3, False, ["a", "b"])
