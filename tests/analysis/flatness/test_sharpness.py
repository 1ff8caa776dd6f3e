"""Sharpness of a quadratic, in closed form."""

import numpy as np
import pytest

from fedmr_flwr.analysis.flatness.sharpness import adaptive_sharpness, sharpness


class Quadratic:
    """L(w) = w'Aw / 2 with a diagonal A."""

    def __init__(self, diagonal, weights):
        self.diagonal, self.weights = np.array(diagonal), np.array(weights)

    def loss(self, step=None):
        place = self.weights if step is None else self.weights + step
        return float(place @ (self.diagonal * place) / 2)

    def gradient(self):
        return self.diagonal * self.weights


def test_sharpness_of_a_quadratic():
    # The gradient is (3, 8) / sqrt(73) long: the rise is r |g| + r^2 g'Ag / (2 |g|^2).
    objective = Quadratic([1.0, 4.0], [3.0, 2.0])
    expected = 0.1 * np.sqrt(73) + 0.01 * (9 + 4 * 64) / (2 * 73)
    assert sharpness(objective, 0.1) == pytest.approx(expected)


def test_adaptive_sharpness_of_a_quadratic():
    # Scaled by |w|: |w| g = (9, 16), of length sqrt(337); the step is 0.1 (27, 32) / sqrt(337).
    objective = Quadratic([1.0, 4.0], [3.0, 2.0])
    step = 0.1 * np.array([27.0, 32.0]) / np.sqrt(337)
    expected = step @ [3, 8] + step @ (np.array([1, 4]) * step) / 2
    assert adaptive_sharpness(objective, 0.1) == pytest.approx(expected)


def test_adaptive_sharpness_does_not_see_a_scaling():
    # w to cw with A to A / c^2 is the same function in other units.
    scale = np.array([10.0, 0.1])
    one = Quadratic([1.0, 4.0], [3.0, 2.0])
    other = Quadratic(one.diagonal / scale**2, one.weights * scale)
    assert adaptive_sharpness(other, 0.3) == pytest.approx(adaptive_sharpness(one, 0.3))
    assert sharpness(other, 0.3) != pytest.approx(sharpness(one, 0.3))


@pytest.mark.parametrize("measure", [sharpness, adaptive_sharpness])
def test_a_flat_place_is_not_sharp(measure):
    assert measure(Quadratic([1.0, 1.0], [0.0, 0.0])) == 0
