"""The numbers of a comparison, worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from fedmr_flwr.analysis.studies.results import Interval, RunKey, best_of, collect, difference, floor_percent
from tests.support.curves import TWO, rows


def keyed(found, cell=""):
    return {RunKey(cell, name, seed): rows for name, runs in found.items() for seed, rows in enumerate(runs)}


def numbers(runs, strategy, name):
    return tuple(runs.loc[runs["strategy"] == strategy, name])


def test_numbers_by_hand():
    runs = collect(keyed(TWO))
    assert runs["target"].tolist() == [0.5] * 4, "the highest whole percentage that all four have reached"
    assert numbers(runs, "fedmr", "last") == (0.7, 0.8)
    assert numbers(runs, "fedmr", "best") == (0.8, 0.9)
    assert numbers(runs, "fedmr", "late") == pytest.approx((0.66, 0.72)), "the mean of the last five of six"
    assert numbers(runs, "fedmr", "rounds_to") == (4, 4)
    assert numbers(runs, "fed_avg/mu=0.1", "rounds_to") == (8, 12)
    assert numbers(runs, "fedmr", "bytes_down") == (500, 500)
    assert numbers(runs, "fedmr", "bytes_up") == (200, 200)
    assert numbers(runs, "fedmr", "bytes_to") == (4 * 4 * 700,) * 2, "4 rounds of 4 clients"
    assert numbers(runs, "fedmr", "seconds_to") == (0.5 + 1 + 1.5 + 2,) * 2


def test_steadiness_is_of_the_last_ten():
    accuracies = [0.9] * 5 + [0.1, 0.2] * 5
    runs = collect({RunKey("", "a", 0): rows(accuracies), RunKey("", "b", 0): rows([0.5])})
    assert runs["steadiness"][0] == pytest.approx(np.std([0.1, 0.2] * 5, ddof=1))
    assert math.isnan(runs["steadiness"][1])


def test_imports_of_the_first_round_do_not_count():
    slow = rows([0.5] * 3)
    slow[0]["seconds"] = 100.0
    assert collect({RunKey("", "a", 0): slow})["seconds"][0] == 2.25, "the median of 100, 1, 1.5, 2, 2.5, 3"


def test_unreached_target_is_infinite():
    runs = collect(keyed(TWO), 0.65)
    assert set(runs["target"]) == {0.65}
    assert numbers(runs, "fedmr", "rounds_to") == (6, 8)
    for name in ("rounds_to", "bytes_to", "seconds_to"):
        assert numbers(runs, "fed_avg/mu=0.1", name) == (math.inf, math.inf)


def test_each_cell_has_its_own_target():
    runs = collect(keyed(TWO, "a") | keyed({"fedmr": TWO["fedmr"]}, "b"))
    assert runs.groupby("cell")["target"].first().to_dict() == {"a": 0.5, "b": 0.8}


def test_whole_percentages_stay():
    assert [percent for percent in range(101) if floor_percent(percent / 100) != percent / 100] == []
    assert floor_percent(0.28999) == 0.28


def test_round_without_clients_sent_nothing():
    found = rows([0.5, 0.6])
    found[0] |= {"clients": (), "bytes-down": {}, "bytes-up": {}}
    assert collect({RunKey("", "a", 0): found})["bytes_down"][0] == 500


def test_differences_pair_equal_seeds():
    runs = collect({
        RunKey("", name, seed): rows([level])
        for name, levels in {"a": {0: 0.5, 1: 0.6, 2: 0.7}, "b": {1: 0.62, 2: 0.76, 3: 0.1}}.items()
        for seed, level in levels.items()
    })  # fmt: skip
    found = difference(runs, "", "b", "a")
    ours = stats.ttest_rel([0.62, 0.76], [0.6, 0.7]).confidence_interval(0.95)
    assert found == pytest.approx((0.04, ours.low, ours.high))
    assert difference(runs, "", "a", "none") is None


def test_one_seed_has_no_interval():
    runs = collect(
        {RunKey("", "a", 0): rows([0.5]), RunKey("", "b", 0): rows([0.6]), RunKey("", "c", 1): rows([0.1])}
    )
    assert difference(runs, "", "b", "a") == Interval(pytest.approx(0.1), -math.inf, math.inf)
    assert difference(runs, "", "c", "a") is None
    assert best_of(runs, "") is None


def best(a, b):
    found = {"a": a, "b": b}
    return best_of(collect({RunKey("", n, at): rows([x]) for n, xs in found.items() for at, x in enumerate(xs)}), "")


def test_best_needs_an_interval_above_zero():
    assert best([0.5, 0.6, 0.7], [0.6, 0.71, 0.8]) == "b"
    assert best([0.5, 0.6, 0.7], [0.9, 0.5, 0.8]) is None
    assert best([0.5, 0.5], [0.5, 0.5]) is None
    assert best([0.5, 0.6], [0.6, 0.7]) == "b", "equal differences"


def test_client_evaluations_are_the_last_ones():
    own = rows([0.5, 0.6])
    own[0] |= {"client-accuracy": {"mean": 0.1, "worst-tenth": 0.0}, "macro-f1": 0.2}
    own[2] |= {"client-accuracy": {"mean": 0.4, "worst-tenth": 0.3}, "tuned-accuracy": {"clients": 0}}
    runs = collect({RunKey("", "a", 0): own, RunKey("", "b", 0): rows([0.5])})
    assert (runs["client_mean"][0], runs["client_worst"][0], runs["macro_f1"][0]) == (0.4, 0.3, 0.2)
    assert math.isnan(runs["tuned_mean"][0]), "no client replied"
    assert math.isnan(runs["client_mean"][1]) and math.isnan(runs["macro_f1"][1])
