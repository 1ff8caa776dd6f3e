"""An error in a user's own code is named as such, with its file and line, on the server and at the clients."""

import json

import pytest
from flwr.simulation.ray_transport.ray_actor import VirtualClientEngineActor

from fedmr_flwr.client.app import client_app
from fedmr_flwr.errors import DataError, FedmrError, OwnCodeError, RunError
from fedmr_flwr.wire.grids.in_process import InProcessGrid
from tests.support.runs import run

MODEL = """
from torch import nn


class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.last = nn.Linear(64, classes)

    def forward(self, images):
        if len(images) > 2 and {when}:  # after the check of two examples
            raise ValueError("not so many")
        return self.last(images.flatten(1))
"""
STRATEGY = """
import fedmr_flwr


class Mine(fedmr_flwr.FedAvg):
    def models(self, round):
        if round.number > 1:
            return self.unknown
        return super().models(round)

    def combine(self, round, slots):
        return fedmr_flwr.Combined(fedmr_flwr.average([], []), self.state)
"""
DATA = """
def load(folder):
    return [][0]
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a module of a user's own; return its path."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, text):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        return path

    return write


def fails(settings, kind, grid=None):
    """Run with the in-process engine; return the message of its error, which is in one line."""
    with pytest.raises(kind) as caught:
        run(settings, grid=grid)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_model_that_fails_on_the_server(own, toy):
    path = own("failing_server", MODEL.format(when="not self.training"))
    settings = toy("model.name=failing_server:Net")
    error = fails(settings, OwnCodeError)
    traceback = settings.run_dir / "traceback.txt"
    place = f"{path}, line 12, in forward"
    assert error == f"your own code failed: ValueError: not so many ({place}); the traceback is in {traceback}"
    assert "server/evaluation.py" in traceback.read_text()
    assert json.loads((settings.run_dir / "manifest.json").read_text())["error"] == error


def test_model_that_fails_at_the_clients(own, toy):
    path = own("failing_client", MODEL.format(when="self.training"))
    error = fails(toy("model.name=failing_client:Net"), RunError)
    assert f"client-error: ValueError: not so many ({path}, line 12, in forward)" in error


def test_model_that_fails_in_rays_process(own, toy):
    path = own("failing_in_ray", MODEL.format(when="self.training"))
    settings = toy("model.name=failing_in_ray:Net")

    # Of an exception, Flower's actor passes on the text alone.
    def actor(message, context):
        return VirtualClientEngineActor().run(lambda: client_app, message, "0", context)[1]

    error = fails(settings, RunError, InProcessGrid(actor, settings.clients))
    assert f"client-error: ValueError: not so many ({path}, line 12, in forward)" in error


@pytest.mark.parametrize(
    ("method", "words"),
    [("models", "AttributeError: 'Mine' object has no attribute 'unknown'"), ("combine", "AssertionError")],
)
def test_algorithm_that_fails(own, toy, method, words):
    text = STRATEGY if method == "combine" else STRATEGY.partition("    def combine")[0]
    path = own(f"failing_{method}", text)
    error = fails(toy(f"strategy.name=failing_{method}:Mine"), OwnCodeError)
    assert error.startswith(f"your own code failed: {words}")
    # A library function that was called wrongly is not what the user wrote.
    assert f"({path}, line {8 if method == 'models' else 12}, in {method})" in error


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "1 +",
            "'own_broken_0:Mine' cannot be imported: SyntaxError: invalid syntax (own_broken_0.py, line 1); it must",
        ),
        (
            "\nnothing",
            "cannot be imported: NameError: name 'nothing' is not defined ({path}, line 2, in <module>); it",
        ),
    ],
)
def test_module_that_fails(own, toy, text, words):
    name = f"own_broken_{len(text) > 3:d}"
    path = own(name, text)
    with pytest.raises(FedmrError) as caught:
        toy(f"strategy.name={name}:Mine")
    assert words.format(path=path) in str(caught.value)


def test_data_that_fail(own, toy):
    path = own("failing_data", DATA)
    error = fails(toy("data.name=failing_data:load"), DataError)
    assert f"'failing_data:load' failed with IndexError: list index out of range ({path}, line 3, in load)" in error
