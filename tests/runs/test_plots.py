import numpy as np
import pytest
from matplotlib.image import imread

from fedmr_flwr.runs import plots


@pytest.mark.parametrize(("clients", "classes"), [(3, 2), (100, 10), (1000, 62)])
def test_the_clients_picture_is_drawn_for_few_and_many(tmp_path, clients, classes):
    counts = np.random.default_rng(0).integers(0, 50, (clients, classes))
    plots.clients(counts, "a title", tmp_path / "clients.png")
    height, width, _ = imread(tmp_path / "clients.png").shape
    assert height >= 400
    assert width >= 900
    assert clients < 100 or width > 1500


def test_the_curves_hold_accuracy_and_loss_of_the_evaluated_rounds(tmp_path, monkeypatch):
    rows = [{"round": 1, "train-loss": 2.0}, {"round": 2, "train-loss": 1.0, "test-accuracy": 0.25, "test-loss": 1.5}]
    drawn = {}
    save = plots.Figure.savefig

    def look(figure, *args, **kwargs):
        for axes in figure.axes:
            lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()]
            drawn[axes.get_ylabel()] = (axes.get_xlabel(), lines)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(plots.Figure, "savefig", look)
    plots.curves(rows, "a title", tmp_path / "curves.png")
    assert drawn["test accuracy (%)"] == ("round", [([2], [25.0])])
    assert drawn["cross-entropy"] == ("round", [([2], [1.5]), ([1, 2], [2.0, 1.0])])
    assert (tmp_path / "curves.png").stat().st_size > 5000
