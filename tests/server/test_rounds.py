"""The rounds of a run with strategies that are Flower's own."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp import strategy as flower

from fedmr_flwr.config.settings import Settings
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.server import rounds as loop
from fedmr_flwr.wire.codec import Codec, restore_dtypes
from fedmr_flwr.wire.grids.roster import RosterGrid

LAYOUT = Layout.of({"w": np.zeros(3, np.float32), "n": np.zeros((), np.int64)})
ALL = {"fraction_train": 1.0, "fraction_evaluate": 0.0}
PACKED, PLAIN = Codec(LAYOUT), Codec(LAYOUT, packed=False)


@pytest.mark.parametrize("codec", [PACKED, PLAIN], ids=["packed", "per tensor"])
@pytest.mark.parametrize(
    "make", [flower.FedAvg, flower.FedAdam, flower.FedAvgM, flower.FedMedian], ids=lambda make: make.__name__
)
def test_flowers_strategies_keep_the_models_types_round_after_round(grid_of, answer, make, codec):
    def reply(message, client):
        model = codec.decode(message.content["arrays"])
        return answer(
            codec.encode(Parts([model.floats * np.float32(0.5) + client], [model.ints + 1])), examples=client + 1
        )

    settings = Settings(rounds=4, clients=5, clients_per_round=5, engine="in-process")
    rows = []
    arrays = loop.run(
        settings,
        make(**ALL),
        RosterGrid(grid_of(reply, 5), 5),
        codec.encode(Parts([np.ones(3, np.float32)], [np.zeros(1, np.int64)])),
        ConfigRecord(),
        lambda arrays: {},
        lambda row, arrays, stops: rows.append(row),
    )
    assert [row["replies"] for row in rows] == [5] * 4
    model = codec.decode(arrays)
    assert np.isfinite(model.floats).all()
    if make is flower.FedAvg:
        assert model.ints.tolist() == [4], "every client counts one round more"


def test_retyped_rounds_what_must_be_an_integer_and_touches_nothing_else():
    before = ArrayRecord({"w": Array(np.zeros(2, np.float32)), "n": Array(np.array([0, 0]))})
    after = ArrayRecord({"w": Array(np.array([1.5, 2])), "n": Array(np.array([2.6, -1.2])), "new": Array(np.ones(1))})
    found = restore_dtypes(after, before)
    assert found["w"].numpy().tolist() == [1.5, 2]
    assert found["w"].dtype == "float32"
    np.testing.assert_array_equal(found["n"].numpy(), np.array([3, -1]), strict=True)
    assert found["new"].data == after["new"].data
    same = ArrayRecord({"w": before["w"]})
    assert restore_dtypes(same, before)["w"] is same["w"], "no copy without need"
