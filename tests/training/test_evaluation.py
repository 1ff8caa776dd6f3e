"""The evaluation of a model, by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from fedmr_flwr.data.base import Dataset, Examples, Normalisation
from fedmr_flwr.training.evaluation import evaluate, logits_of

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


class Sampling(nn.Module):
    """Draws in evaluation, too, with a function and a generator of the device."""

    def forward(self, images):
        dropped = nn.functional.dropout(images.flatten(1), training=True)
        return dropped + torch.rand_like(dropped)


def test_draws_in_evaluation_repeat():
    examples = Examples(torch.rand(20, 1, 2, 2), torch.arange(20) % 4)
    data = Dataset(examples, examples, 4, None)
    scores, logits = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        scores.append(evaluate(Sampling(), data, examples, CPU, 7))
        logits.append(logits_of(Sampling(), data, examples, CPU, 7))
        assert torch.equal(torch.get_rng_state(), before)
    assert scores[0] == scores[1]
    np.testing.assert_array_equal(*logits)
    # Of each class as of all of them.
    assert scores[0].accuracy == np.mean(logits[0].argmax(1) == examples.labels.numpy())


@pytest.mark.parametrize("score", [evaluate, logits_of])
def test_tensors_kept_in_evaluation_can_be_trained_with(score):
    class Keeping(nn.Linear):
        kept = None

        def forward(self, images):
            self.kept = torch.ones(2) if self.kept is None else self.kept
            return super().forward(images.flatten(1)) * self.kept

    model, examples = Keeping(2, 2), Examples(torch.rand(3, 1, 1, 2), torch.arange(3) % 2)
    score(model, Dataset(examples, examples, 2, None), examples, CPU)
    model(examples.inputs).sum().backward()
    assert model.weight.grad is not None
