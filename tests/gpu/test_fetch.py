"""The kernels that fetch batches, in Triton's interpreter where there is no GPU."""

import pytest
import torch

from fedmr_flwr.data.base import Examples

pytest.importorskip("triton", reason="Triton is not installed")

from fedmr_flwr.gpu import fetch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_fetch_copies_the_next_examples():
    draws = torch.Generator().manual_seed(0)
    examples = Examples(torch.rand(30, 3, 20, 20, generator=draws), torch.arange(30)).to(DEVICE)
    order, cursor = torch.randperm(30, generator=draws).to(DEVICE), torch.tensor([7, 8], device=DEVICE)
    inputs, labels = fetch.fetch(examples, order, cursor, 5)
    assert labels.tolist() == order[7:12].tolist()
    assert torch.equal(inputs, examples.inputs[order[7:12]])


def test_fetch_all_copies_the_next_examples_of_each_lane():
    draws = torch.Generator().manual_seed(0)
    examples = Examples(torch.rand(30, 3, 20, 20, generator=draws), torch.arange(30)).to(DEVICE)
    orders = torch.stack([torch.randperm(30, generator=draws) for _ in range(3)]).to(DEVICE)
    plan = torch.tensor([[[0, 4], [0, 4], [0, 4]], [[4, 3], [4, 0], [7, 4]]], device=DEVICE)
    counts = torch.zeros(3, dtype=torch.int32, device=DEVICE)
    inputs, labels = fetch.fetch_all(examples, orders, plan, torch.tensor(1, device=DEVICE), counts, 4)
    assert counts.tolist() == [3, 0, 4]
    for lane, chosen in (0, orders[0, 4:7]), (2, orders[2, 7:11]):
        mine = slice(4 * lane, 4 * lane + len(chosen))
        assert labels[mine].tolist() == chosen.tolist()
        assert torch.equal(inputs[mine], examples.inputs[chosen])
