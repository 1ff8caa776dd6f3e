import numpy as np
import pytest

from fedmr_flwr.algorithms.fedcross import FedCross
from fedmr_flwr.algorithms.indep import Indep
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.core.population import cosines
from tests.support.rounds import packed, round_of

LAYOUT = Layout.of({"w": np.zeros(2, np.float32), "n": np.zeros(1, np.int64)})
# Two that point the same way, one across, one back.
POPULATION = [
    Packed(np.array(floats, np.float32), np.array([at]))
    for at, floats in enumerate([(1, 0), (2, 0.2), (0, 4), (-8, 0)])
]


def dispatched(number=2, models=POPULATION, kind=FedCross, **options):
    strategy = kind(clients_per_round=len(models), layout=LAYOUT, **options)
    return strategy.dispatch(round_of(strategy, number, models[0]), models)


@pytest.mark.parametrize(
    ("collaborator", "chosen"), [("lowest", [3, 3, 0, 0]), ("highest", [1, 0, 1, 2]), ("in-order", [3, 0, 1, 2])]
)
def test_mixes_with_collaborators_by_hand(collaborator, chosen):
    for slot, model in enumerate(dispatched(alpha=0.75, collaborator=collaborator)):
        expected = 0.75 * POPULATION[slot].floats + 0.25 * POPULATION[chosen[slot]].floats
        np.testing.assert_allclose(model.floats, expected, rtol=1e-6)
        assert model.ints.tolist() == [slot]


def test_in_order_pairs_all_slots():
    tagged = [packed([1 + slot, 0], [slot]) for slot in range(4)]
    # With half its weight, a slot's model gives away its collaborator: 0.5 (1 + own) + 0.5 (1 + other).
    options = {"models": tagged, "alpha": 0.5, "collaborator": "in-order"}
    met = np.array([[model.floats[0] for model in dispatched(number, **options)] for number in range(1, 4)])
    for slot in range(4):
        assert set(2 * met[:, slot] - 2 - slot) == set(range(4)) - {slot}


def test_in_order_keeps_the_mean():
    mixed = dispatched(alpha=0.6, collaborator="in-order")
    np.testing.assert_allclose(
        np.mean([model.floats for model in mixed], 0), np.mean([model.floats for model in POPULATION], 0), rtol=1e-6
    )


def test_alpha_1_equals_indep():
    for model, alone in zip(dispatched(alpha=1), dispatched(kind=Indep), strict=True):
        assert model.floats.tobytes() == alone.floats.tobytes()


def test_single_model_stays_unmixed():
    (model,) = dispatched(models=POPULATION[:1])
    assert model.floats.tolist() == [1, 0]


def test_cosines_by_hand():
    rows = [np.array(row, np.float32) for row in [(3, 4), (4, 3), (-3, -4), (0, 0)]]
    expected = [[1, 0.96, -1, 0], [0.96, 1, -0.96, 0], [-1, -0.96, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(cosines(rows), expected, atol=1e-6)


@pytest.mark.parametrize(("compare", "chosen"), [("weights", [1, 0, 1]), ("all", [2, 2, 0])])
def test_chooses_by_weights_or_by_all(compare, chosen):
    # The weights of 0 and 1 point away from each other; the long running variances make 2 the odd one out.
    layout = Layout.of({"w": np.zeros(2, np.float32), "bn.running_var": np.zeros(2, np.float32)})
    models = [packed(floats, []) for floats in ([1, 0, 90, 0], [-1, 0.1, 90, 1], [1, 1, 0, 90])]
    strategy = FedCross(clients_per_round=3, layout=layout, alpha=0.5, compare=compare)
    for own, other, mixed in zip(
        models, chosen, strategy.dispatch(round_of(strategy, 2, models[0]), models), strict=True
    ):
        np.testing.assert_allclose(mixed.floats, (own.floats + models[other].floats) / 2)
