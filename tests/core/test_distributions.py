"""The distributions of tuned options."""

import numpy as np
import pytest

from fedmr_flwr.core.distributions import Around, Choice, LogUniform
from fedmr_flwr.core.randomness import stream


def test_orders_of_magnitude_are_equally_likely():
    drawn = np.array([LogUniform(0.001, 1).draw(stream(0, "test", at)) for at in range(3000)])
    counts, _ = np.histogram(drawn, [0.001, 0.01, 0.1, 1.0])
    assert counts.sum() == 3000
    assert counts == pytest.approx([1000] * 3, abs=100)


def test_rounded_values_stay_in_the_range():
    narrow = LogUniform(0.0123456, 0.0123457)
    assert 0.0123456 <= narrow.draw(stream(0, "test")) <= 0.0123457


def test_choice_has_all_values():
    assert {Choice(("a", 2, 0.5)).draw(stream(0, "test", at)) for at in range(50)} == {"a", 2, 0.5}


def test_range_around_a_value():
    assert Around(10).of(0.05) == LogUniform(0.005, 0.5)
