"""Lines and planes between vectors with known losses."""

import numpy as np
import pytest

from fedmr_flwr.analysis.flatness.landscape import barrier, line, principal_plane, random_plane, surface


def squared(vector):
    return float(vector @ vector)


def test_a_line_has_both_ends():
    losses = line(squared, np.array([0.0, 0]), np.array([3.0, 4]), 5)
    assert losses == pytest.approx([0, 25 / 16, 25 / 4, 25 * 9 / 16, 25])


def test_a_barrier_is_the_rise_above_the_straight_line():
    # The straight line from 1 to 3 is at 2 in the middle.
    assert barrier(np.array([1.0, 5, 3])) == 3


def test_a_convex_line_has_no_barrier():
    assert barrier(np.array([1.0, 0, 1])) == 0


@pytest.fixture
def models():
    return list(np.random.default_rng(0).standard_normal((3, 20)))


def test_a_plane_contains_its_three_models(models):
    plane = principal_plane(models)
    for model, (x, y) in zip(models, plane.place(models), strict=True):
        assert plane.model_at(x, y) == pytest.approx(model)


def test_axes_of_a_principal_plane_are_orthonormal(models):
    axes = principal_plane(models).axes
    assert axes @ axes.T == pytest.approx(np.eye(2))


def test_the_first_axis_is_that_of_the_largest_differences():
    models = [np.array([x, y, 0]) for x, y in ((-9.0, 0), (9.0, 0), (0, 1.0), (0, -1.0))]
    assert np.abs(principal_plane(models).axes) == pytest.approx(np.array([[1, 0, 0], [0, 1, 0]]))


def test_a_surface_is_the_loss_at_each_point(models):
    plane = principal_plane(models)
    found = surface(squared, plane, np.array([0.0, 1]), np.array([-2.0, 0, 2]))
    assert found.shape == (3, 2)
    assert found[2, 1] == pytest.approx(squared(plane.model_at(1, 2)))


def test_random_directions_have_the_lengths_of_filters():
    model = np.arange(1.0, 16)
    # A convolution with two filters of six weights, and a bias.
    plane = random_plane(model, [(slice(0, 12), (2, 3, 2)), (slice(12, 15), (3,))], np.random.default_rng(0))
    for axis in plane.axes:
        for columns in (slice(0, 6), slice(6, 12)):
            assert np.linalg.norm(axis[columns]) == pytest.approx(np.linalg.norm(model[columns]))
        assert not axis[12:].any(), "biases do not move"
