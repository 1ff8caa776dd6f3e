"""Results of runs whose model is a user's own."""

import io

import torch
from rich.console import Console

from fedmr_flwr import load_run
from fedmr_flwr.launch import engines
from fedmr_flwr.report.display import Display

TIED = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, classes)
        self.second.weight = self.first.weight

    def forward(self, images):
        return self.last(torch.relu(self.second(torch.relu(self.first(images.flatten(1))))))
"""


def test_a_model_with_tied_weights_is_read_back(toy, tmp_path, monkeypatch):
    (tmp_path / "tied_model.py").write_text(TIED)
    monkeypatch.syspath_prepend(tmp_path)
    settings = toy("model.name=tied_model:Tied", "keep-models=[1]", "keep-models-slots=true")
    engines.run(settings, Display(settings.rounds, Console(file=io.StringIO())))
    results = load_run(settings.run_dir)
    for model in (results.model(), results.model(1), *results.population(1)):
        assert model.second.weight is model.first.weight
    start, first, last = (results.model(number).first.weight.detach() for number in (0, 1, 3))
    assert not torch.equal(start, first)
    assert not torch.equal(first, last)
