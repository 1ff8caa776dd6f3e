import numpy as np
import pytest

from fedmr_flwr.algorithms.fedcross import FedCross
from fedmr_flwr.algorithms.indep import Indep
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.core.population import cosines
from fedmr_flwr.wire.codec import Codec

LAYOUT = Layout.of({"w": np.zeros(2, np.float32), "n": np.zeros(1, np.int64)})
CODEC = Codec(LAYOUT)
# Two that point the same way, one across, one back.
POPULATION = [
    Packed(np.array(floats, np.float32), np.array([at]))
    for at, floats in enumerate([(1, 0), (2, 0.2), (0, 4), (-8, 0)])
]


def dealt(server_round=2, **options):
    strategy = FedCross(clients_per_round=4, layout=LAYOUT, **options)
    return [CODEC.decode(record) for record in strategy.deal(server_round, POPULATION, None)]


@pytest.mark.parametrize(
    ("collaborator", "chosen"), [("lowest", [3, 3, 0, 0]), ("highest", [1, 0, 1, 2]), ("in-order", [3, 0, 1, 2])]
)
def test_every_slot_is_mixed_with_its_collaborator_by_hand(collaborator, chosen):
    for slot, model in enumerate(dealt(alpha=0.75, collaborator=collaborator)):
        expected = 0.75 * POPULATION[slot].floats + 0.25 * POPULATION[chosen[slot]].floats
        np.testing.assert_allclose(model.floats, expected, rtol=1e-6)
        assert model.ints.tolist() == [slot]


def test_in_order_everyone_meets_everyone_else_and_the_mean_stays():
    strategy = FedCross(clients_per_round=4, layout=LAYOUT, collaborator="in-order")
    met = [strategy._collaborators(number, POPULATION) for number in range(1, 4)]
    for slot in range(4):
        assert {row[slot] for row in met} == set(range(4)) - {slot}
    mixed = dealt(alpha=0.6, collaborator="in-order")
    np.testing.assert_allclose(
        np.mean([model.floats for model in mixed], 0), np.mean([model.floats for model in POPULATION], 0), rtol=1e-6
    )


def test_without_the_collaborators_weight_it_is_indep_bit_for_bit():
    alone = Indep(clients_per_round=4, layout=LAYOUT).deal(2, POPULATION, None)
    for model, record in zip(dealt(alpha=1), alone, strict=True):
        assert model.floats.tobytes() == CODEC.decode(record).floats.tobytes()


def test_a_single_model_has_no_collaborator():
    strategy = FedCross(clients_per_round=1, layout=LAYOUT)
    (record,) = strategy.deal(2, POPULATION[:1], None)
    assert CODEC.decode(record).floats.tolist() == [1, 0]


def test_cosines_by_hand():
    rows = [np.array(row, np.float32) for row in [(3, 4), (4, 3), (-3, -4), (0, 0)]]
    expected = [[1, 0.96, -1, 0], [0.96, 1, -0.96, 0], [-1, -0.96, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(cosines(rows), expected, atol=1e-6)
