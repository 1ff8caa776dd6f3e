"""The curves of a comparison."""

import numpy as np
import pytest

from fedmr_flwr.analysis.studies import curves
from fedmr_flwr.report import figures
from tests.support.curves import TWO, rows


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Return a function that draws, and returns the figure."""
    written = []
    monkeypatch.setattr(figures, "write", lambda figure, path: written.append(figure))

    def draw(found):
        curves.draw(found, "a title", tmp_path / "x.png")
        return written[-1]

    return draw


def test_each_strategy_has_a_line_and_a_band(drawn):
    figure = drawn({"": TWO | {"none": [], "single": TWO["fedmr"][:1]}})
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["fedmr", "fed_avg/mu=0.1", "single"]
    np.testing.assert_allclose(axes.lines[0].get_xydata()[1], [4, 55])
    assert len(axes.collections) == 2, "a single run has no band"
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((10, 90))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("round", "accuracy (%)")


def test_each_cell_has_a_panel(drawn):
    figure = drawn(dict.fromkeys(("one", "two", "$three"), TWO) | {"none": {"fedmr": [], "fed_avg/mu=0.1": []}})
    assert [axes.get_title() for axes in figure.axes] == ["one", "two", r"\$three", "none"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["fedmr", "fed_avg/mu=0.1"]
    colours = {line.get_color() for axes in figure.axes for line in axes.lines if line.get_label() == "fedmr"}
    assert len(colours) == 1, "a strategy has one colour in all panels"


def test_many_strategies_have_a_panel_each(drawn):
    found = {f"s{at}": [rows([0.1 * at, 0.5])] for at in range(7)}
    figure = drawn({"": found})
    assert [axes.get_title() for axes in figure.axes] == [*found]
    (highlighted,) = [line for line in figure.axes[3].lines if line.get_color() != "0.8"]
    assert highlighted.get_ydata()[0] == pytest.approx(30)
    assert len(figure.axes[3].lines) == 7


def test_in_many_cells_the_first_and_the_best_have_a_colour(drawn):
    found = {f"s{at}": [rows([0.1, 0.1 * at])] for at in range(9)}
    figure = drawn({"one": found, "two": found | {"s0": []}})
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["s0", "s4", "s5", "s6", "s7", "s8", "others"]
    assert [len(axes.lines) for axes in figure.axes] == [9, 8]
