"""A client's handlers: what a run with a model of a user's own computes."""

import warnings

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune

from fedmr_flwr import models
from fedmr_flwr.client import app as client
from fedmr_flwr.client.data_spec import DataSpec
from fedmr_flwr.config import registry
from fedmr_flwr.errors import ConfigError, FedmrError, OptionError, UnexpectedError
from fedmr_flwr.files import writing
from fedmr_flwr.models import MODELS
from fedmr_flwr.models.base import Classifier
from fedmr_flwr.models.packing import layout_of, pack
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server.experiment import Experiment
from fedmr_flwr.wire.codec import Codec
from tests.support.runs import run


class Dropping(Classifier):
    """A model whose dropout draws from PyTorch's default generator."""

    def __init__(self, shape, classes):
        super().__init__()
        self.body, self.drop, self.classifier = nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, classes)

    def features(self, images):
        return self.drop(torch.relu(self.body(images.flatten(1))))


def sha256_of(settings, prepared=None):
    return run(settings, prepared).read_manifest()["model-sha256"]


@pytest.fixture
def dropping(toy, monkeypatch):
    """Return a function that makes the settings of a run of the model with dropout."""
    monkeypatch.setitem(MODELS, "dropping", Dropping)
    return lambda run: toy("model.name=dropping", "checkpoint-every=1", run=run)


def test_dropout_repeats(dropping):
    assert sha256_of(dropping("a")) == sha256_of(dropping("b"))


def test_resumed_dropout_ends_the_same(dropping, monkeypatch):
    whole, settings, fits, fit = sha256_of(dropping("whole")), dropping("cut"), [], client.fit

    def stopping(*arguments):
        fits.append(1)
        if len(fits) > 5:
            raise KeyboardInterrupt
        return fit(*arguments)

    monkeypatch.setattr(client, "fit", stopping)
    with pytest.raises(KeyboardInterrupt):
        sha256_of(settings)
    monkeypatch.setattr(client, "fit", fit)
    assert sha256_of(settings, RunFolder(settings.run_dir)) == whole


@pytest.mark.parametrize("node", [True, False])
def test_bug_on_a_node_is_in_its_folder(node, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "_number", None)
    own = {"data": "x.npz", "state": str(tmp_path / "state")} if node else {"partition-id": 0}
    context = Context(1, 1, own, RecordDict(), {})
    message = Message(RecordDict(), 1, "query")
    with pytest.raises(UnexpectedError if node else TypeError):
        client.client_app(message, context)
    assert (tmp_path / "state" / "traceback.txt").exists() == node


def test_errors_of_a_node_name_it_and_not_its_folders(tmp_path, monkeypatch):
    own = {"data": f"csv:{tmp_path}/own.csv", "state": str(tmp_path / "state"), "name": "node-3"}
    context = Context(1, 1, own | {"partition-id": 3}, RecordDict(), {})

    def fails(*_):
        with writing(tmp_path / "state/x"):
            raise OSError(28, "No space left on device")

    def refuses(*_):
        raise OptionError("guard", f"it is in {tmp_path}/own.csv")

    for handler, words in (
        (fails, "node-3: cannot write state/x: No space left on device; "),
        (refuses, r"node-3: guard: it is in own\.csv$"),
    ):
        monkeypatch.setattr(client, "_number", handler)
        with pytest.raises(FedmrError, match=f"^{words}"):
            client.client_app(Message(RecordDict(), 1, "query"), context)


def test_evaluator_does_not_train(toy, tmp_path):
    settings, rng = toy("model.name=logistic"), np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", x_train=rng.integers(0, 17, (12, 8, 8), np.uint8), y_train=np.arange(12) % 10)
    model = models.build("logistic", (1, 8, 8), 10)
    layout = layout_of(model)
    config = client.train_config(settings, layout, DataSpec.of(Experiment(settings).dataset), "0123456789abcdef")
    content = RecordDict({"arrays": Codec(layout).encode(pack(model, layout)), "config": config})
    own = {"partition-id": 2, "data": str(tmp_path / "own.npz"), "device": "cpu", "state": str(tmp_path)}
    context = Context(1, 1, own | {"role": "evaluator"}, RecordDict(), {})
    assert client.client_app(Message(content, 1, "evaluate"), context).content["metrics"]["num-examples"] == 12
    with pytest.raises(ConfigError, match="this node is an evaluator, which does not train; see role in"):
        client.client_app(Message(content, 1, "train"), context)


class Plain(nn.Sequential):
    """A model without parts: it draws random numbers, uses a frozen layer twice, and computes weights in hooks."""

    def __init__(self, shape, classes):
        pruned, hidden = prune.random_unstructured(nn.Linear(64, 32), "weight", 0.5), nn.Linear(32, 32)
        hidden.requires_grad_(False)
        with warnings.catch_warnings(action="ignore"):  # the newer one needs no hook
            normed = nn.utils.weight_norm(nn.Linear(32, 32))
        super().__init__(
            nn.Flatten(), pruned, nn.RReLU(), normed, hidden, nn.BatchNorm1d(32), hidden, nn.Linear(32, classes)
        )


@pytest.mark.slow
@pytest.mark.parametrize("strategy", sorted(registry.ALGORITHMS))
def test_every_strategy_takes_any_model(toy, monkeypatch, strategy):
    monkeypatch.setitem(MODELS, "plain", Plain)
    settings = [toy("model.name=plain", f"strategy.name={strategy}", "rounds=3", run=name) for name in "ab"]
    assert sha256_of(settings[0]) == sha256_of(settings[1])
    out = RunFolder(settings[0].run_dir)
    assert [row["failures"] for row in out.read_rows()] == [0, 0, 0]
    start, end = models.build("plain", (1, 8, 8), 10).state_dict(), load_file(out.model)
    assert torch.allclose(start["4.weight"], end["4.weight"], atol=1e-6), "frozen"
    assert torch.equal(start["1.weight_mask"], end["1.weight_mask"])
    assert not torch.allclose(start["1.weight_orig"], end["1.weight_orig"], atol=1e-3)
