"""How far the numbers that clients send are believed."""

import pytest

from fedmr_flwr.wire.numbers import counted_examples, find_metric_problem, implausible_losses


@pytest.mark.parametrize(
    ("metrics", "kind", "words"),
    [
        ({"loss": float("nan")}, "not-finite", "its metric 'loss' is nan"),
        ({"loss": float("-inf")}, "not-finite", "is -inf"),
        ({"loss": [1.0, float("inf")]}, "not-finite", "is inf"),
        ({"loss": 1e15}, "malformed", "beyond 1e+15"),
        ({"steps": -(2**63)}, "malformed", "beyond 1e+15"),
        ({"steps": 10**400}, "malformed", "beyond 1e+15"),
        ({"x" * 101: 1.0}, "malformed", "at most 100 printable characters"),
        ({"\x1b[2Jround 9/9": 1.0}, "malformed", "printable"),
        ({f"k{i}": 1.0 for i in range(100)}, "malformed", "has 101 metrics; at most 100"),
        ({"big": [0.5] * 1001}, "malformed", "more than 1000 numbers, the last ones in 'big'"),
        ({"one": [0.5] * 600, "two": [0.5] * 600}, "malformed", "the last ones in 'two'"),
    ],
)
def test_metrics_are_bounded(metrics, kind, words):
    found, reason = find_metric_problem({"num-examples": 10, **metrics})
    assert found == kind
    assert words in reason


def test_ordinary_metrics_pass():
    assert find_metric_problem({"num-examples": 10, "train-loss": -0.5, "per class": [0.1] * 62}) is None
    assert find_metric_problem({f"k{i}": float(i) for i in range(99)}) is None


@pytest.mark.parametrize(
    ("losses", "refused"),
    [
        ([0.5, 0.6, 1e14], {2}),
        ([0.5, -1e14, 0.7], {1}),
        ([1e-9, 1e-9, 2.3], set()),  # a client with new classes is honest
        ([1e-9, 1e-9, 999.0], set()),
        ([1e5, 2e5, 3e5], set()),  # all diverge
        ([5.0, 6.0, 5999.0, 6001.0], set()),  # their median is 3002.5
        ([5.0, 6.0, 7.0, 7001.0], {3}),
        ([1e14], set()),
    ],
)
@pytest.mark.parametrize("name", ["train-loss", "train_loss"])
def test_loss_far_above_the_median_is_implausible(losses, refused, name):
    found = implausible_losses({client: {name: loss} for client, loss in enumerate(losses)})
    assert set(found) == set(refused)


def test_list_among_losses_is_implausible():
    assert implausible_losses({0: {"train-loss": 0.5}, 1: {"train-loss": [0.5]}, 2: {}}) == {
        1: "its 'train-loss' is a list, and others' are numbers"
    }
    assert implausible_losses({0: {"train-loss": [0.5]}, 1: {"train-loss": [0.6]}}) == {}


def test_implausible_loss_states_the_median():
    found = implausible_losses({0: {"train-loss": 0.5}, 1: {"train-loss": 0.25}, 2: {"train-loss": 1e14}})
    assert found == {2: "its 'train-loss' is 1e+14; the round's median is 0.5"}


@pytest.mark.parametrize(
    ("stated", "counted"),
    [
        ([10, 20, 30], [10, 20, 30]),
        ([10, 20, 10**14], [10, 20, 200]),
        ([10, 10**14], [10, 100]),  # of two the smaller one sets the bound
        ([1, 300, 300, 300, 2999], [1, 300, 300, 300, 2999]),
        ([10**14] * 3, [10**14] * 3),
        ([], []),
    ],
)
def test_examples_are_limited_by_the_median(stated, counted):
    assert counted_examples(dict(enumerate(stated))) == dict(enumerate(counted))
