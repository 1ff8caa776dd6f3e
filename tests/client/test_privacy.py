"""Local differential privacy: what leaves a client is clipped and noisy, and counters are neither."""

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from safetensors.numpy import load_file

from fedmr_flwr.client import privacy
from fedmr_flwr.config.privacy import LocalDp
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.errors import ConfigError
from tests.support.runs import run

LAYOUT = Layout.of(
    {
        "weight": np.zeros(200_000, np.float32),
        "norm.running_var": np.zeros(1000, np.float32),
        "norm.num_batches_tracked": np.zeros(1, np.int64),
    }
)
LOCAL_DP = [
    f"privacy.local-dp.{key}" for key in ("clipping-norm=1", "sensitivity=0.01", "epsilon=1", "delta=0.00001")
]


def protected(trained, received, layout=LAYOUT, **how):
    values = {"clipping_norm": 1e6, "sensitivity": 1e-9, "epsilon": 1.0, "delta": 1e-5} | how
    question = Message(RecordDict(), 1, "train")
    return privacy.protect(trained, received, layout, LocalDp(**values), question)


def model(seed, count=7):
    rng = np.random.default_rng(seed)
    return Packed(rng.normal(size=LAYOUT.size).astype(np.float32) ** 2, np.array([count]))


def test_only_long_updates_are_clipped():
    received, trained = model(0), model(1)
    short = protected(trained, received, clipping_norm=3.0).floats - received.floats
    for entry in LAYOUT.entries[:2]:  # the weights and the statistics, each by itself
        update = trained.floats[entry.columns] - received.floats[entry.columns]
        assert np.linalg.norm(short[entry.columns]) == pytest.approx(3, rel=1e-3)
        assert short[entry.columns] @ update == pytest.approx(3 * np.linalg.norm(update), rel=1e-3)
    np.testing.assert_allclose(protected(trained, received).floats, trained.floats, atol=1e-6)


def test_frozen_weights_get_no_noise():
    arrays = {entry.name: np.zeros(entry.shape, entry.dtype) for entry in LAYOUT.entries}
    layout = Layout.of(arrays, (), frozen=["weight"])
    received, trained = model(0), model(1)
    noisy, (columns,) = protected(trained, received, layout=layout, sensitivity=2.0), layout.frozen
    np.testing.assert_array_equal(noisy.floats[columns], received.floats[columns])
    assert (noisy.floats[layout.entries[1].columns] != trained.floats[layout.entries[1].columns]).all()


WEIGHTS = Layout.of({"weight": np.zeros(200_000, np.float32), "count": np.zeros(1, np.int64)})


@pytest.mark.parametrize(
    ("layout", "parts"), [(LAYOUT, 2), (WEIGHTS, 1)], ids=["half the budget with buffers", "all of it without"]
)
def test_noise_has_the_stated_deviation(layout, parts):
    received, trained = (Packed(own.floats[: layout.size], np.array([2**53 + 1])) for own in (model(0), model(1)))
    deviation = 2 * np.sqrt(2 * np.log(1.25 * parts / 1e-5)) / (4 / parts)
    weights = layout.entries[0].columns
    first, second = (protected(trained, received, layout=layout, sensitivity=2, epsilon=4.0) for _ in range(2))
    for noisy in (first, second):
        noise = noisy.floats[weights] - trained.floats[weights]
        assert noise.std() == pytest.approx(deviation, rel=0.02)
        assert abs(noise.mean()) < 5 * deviation / np.sqrt(len(noise))
        assert noisy.ints.tolist() == [2**53 + 1]
        assert noisy.floats.dtype == np.float32
    correlation = np.corrcoef(first.floats[weights] - trained.floats[weights], second.floats[weights])[0, 1]
    assert abs(correlation) < 0.02


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, None])
def test_failed_training_sends_only_noise(value):
    received = model(0)
    trained = Packed(received.floats.copy(), received.ints)
    if value is not None:
        trained.floats[7] = value
        trained.floats[8:100] += 5
    noisy = protected(trained, received, clipping_norm=1.0, sensitivity=2, epsilon=4.0)
    assert np.isfinite(noisy.floats).all()
    far = noisy.floats[:100] - received.floats[:100]
    assert abs(far.mean()) < 5 * (2 * np.sqrt(2 * np.log(2 * 1.25 / 1e-5)) / 2) / 10


def test_variances_stay_nonnegative():
    received, trained = model(0), model(1)
    variances = LAYOUT.entries[1].columns
    noisy = protected(trained, received, sensitivity=10).floats
    assert noisy[variances].min() == 0
    assert noisy[LAYOUT.entries[0].columns].min() < 0


def test_inputs_are_not_changed():
    received, trained = model(0), model(1)
    before = received.floats.copy(), trained.floats.copy()
    protected(trained, received, sensitivity=10)
    assert (received.floats == before[0]).all()
    assert (trained.floats == before[1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("wire", ["float32", "float16"])
def test_noisy_run_reports_no_loss(toy, wire):
    settings = ["rounds=2", "clients=18", "model.name=resnet20", f"wire={wire}"]
    clear = run(toy(*settings, run="clear"))
    noisy, again = (run(toy(*settings, *LOCAL_DP, run=name)) for name in ("noisy", "again"))
    models = [load_file(out.model) for out in (clear, noisy, again)]
    counters = [name for name in models[0] if name.endswith("num_batches_tracked")]
    assert counters
    for name in models[0]:
        same = [(models[at][name] == models[0][name]).all() for at in (1, 2)]
        assert same == [name in counters] * 2, name
    weights = [model["classifier.weight"] for model in models]
    assert (weights[1] == weights[2]).mean() < 0.05, "noise is no part of the seed"
    assert all("train-loss" in row for row in clear.read_rows())
    assert not any("train-loss" in row for row in noisy.read_rows())
    assert noisy.read_rows()[-1]["failures"] == 0
    assert "local-dp" in noisy.read_manifest()["title"]


@pytest.mark.parametrize(("strategy", "what"), [("scaffold", "control"), ("fedgen", "label-counts")])
def test_extra_vectors_are_refused(toy, strategy, what):
    with pytest.raises(ConfigError, match=f"clients of '{strategy}' also send vectors without noise .*{what}"):
        toy(f"strategy.name={strategy}", *LOCAL_DP)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("privacy.local-dp.epsilon=0", "'privacy.local-dp.epsilon=0': Input should be greater than 0"),
        ("privacy.local-dp.delta=1", "'privacy.local-dp.delta=1': Input should be less than 1"),
        ("privacy.local-dp.clip=1", "unknown key 'privacy.local-dp.clip'"),
        ("evaluation.forgetting=true", "evaluation.forgetting would send each client's accuracy without the noise"),
        ("evaluation.clients=end", "evaluation.clients would send each client's accuracy without the noise"),
    ],
)
def test_wrong_settings_are_refused(toy, wrong, words):
    with pytest.raises(ConfigError, match=words):
        toy(*LOCAL_DP, wrong)


def test_all_four_numbers_are_needed(toy):
    with pytest.raises(ConfigError, match=r"privacy\.local-dp\.delta is missing$"):
        toy(*LOCAL_DP[:3])
