"""The evaluation of a model, by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from fedmr_flwr.data.base import Dataset, Examples, Normalisation
from fedmr_flwr.training.evaluation import evaluate

CPU = torch.device("cpu")


class Constant(nn.Module):
    """Answers class 1 with fixed logits."""

    def forward(self, images):
        return torch.tensor([0.0, 2.0]).expand(len(images), 2)


@pytest.mark.parametrize("batch_size", [1, 2, 1000])
def test_evaluate_by_hand(batch_size):
    examples = Examples(torch.zeros(3, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1, 1]))
    data = Dataset(examples, examples, classes=2, normalisation=Normalisation((0.0,), (1.0,)))
    score = evaluate(Constant(), data, examples, CPU, batch_size)
    log_sum = np.log(1 + np.exp(2))
    assert score.accuracy == pytest.approx(2 / 3)
    assert score.loss == pytest.approx((log_sum + 2 * (log_sum - 2)) / 3)
    assert score.examples == 3


def test_batch_norm_is_not_updated():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 2)).train()
    examples = Examples(torch.ones(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.long))
    evaluate(model, Dataset(examples, examples, 2, Normalisation((0.0,), (1.0,))), examples, CPU)
    assert int(model[0].num_batches_tracked) == 0
