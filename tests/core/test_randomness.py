import numpy as np
import pytest

from fedmr_flwr.core.randomness import stream


def draws(*name):
    return stream(*name).integers(2**62, size=4).tolist()


def test_names_decide_the_draws():
    names = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 0, 0), (0, "a", 1), (0, "a", 1, 0), (0, "a", 0, 1)]
    assert draws(0, "a", 3) == draws(0, "a", 3)
    assert len({tuple(draws(*name)) for name in names}) == len(names)


def test_global_generator_stays_untouched():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    draws(0, "a")
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_numpy_integers_name_equal_streams():
    assert draws(np.int64(7), "a", np.int32(1)) == draws(7, "a", 1)


@pytest.mark.parametrize("seed", range(3))
def test_rounds_are_uncorrelated(seed):
    a, b = (stream(seed, "train", number).normal(size=2000) for number in (1, 2))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1
