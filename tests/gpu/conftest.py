"""Fixtures of the tests of the one-GPU engine."""

import numpy as np
import pytest


@pytest.fixture
def small(tmp_path):
    """Return a function that names the settings for a model: a few images, or texts for the model of characters."""

    def settings(model):
        rng, shape = np.random.default_rng(0), (9,) if model == "charlstm" else (8, 8)
        x, y = rng.integers(0, 20, (165, *shape), dtype=np.uint8), rng.integers(0, 20, 165)
        np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
        data = [f"data.name=npz:{tmp_path / 'data.npz'}", "partition.name=iid", "clients=3", "training.batch-size=20"]
        return [f"model.name={model}", *data, "rounds=2"]

    return settings
