"""Networks to flat vectors and back."""

import numpy as np
import torch
from torch import nn

from fedmr_flwr.models.packing import layout_of, pack, pack_on_device, unpack
from fedmr_flwr.training.devices import place

CPU = torch.device("cpu")


def test_pack_moves_the_state_dict():
    def network(seed):
        torch.random.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3))

    a, b = network(0), network(1)
    a(torch.rand(4, 1, 5, 5))  # moves BatchNorm's statistics and counter
    layout = layout_of(a)
    packed = pack(a, layout)
    packed.floats.flags.writeable = False
    place(b, CPU)
    unpack(packed, layout, b)
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name
    assert int(b[1].num_batches_tracked) == 1
    np.testing.assert_array_equal(pack(b, layout).floats, packed.floats)


def test_pack_on_device_agrees():
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3))
    place(model, CPU)
    layout = layout_of(model)
    found, expected = pack_on_device(list(model.state_dict().values()), layout), pack(model, layout)
    assert isinstance(found.floats, torch.Tensor)
    np.testing.assert_array_equal(found.floats.numpy(), expected.floats)
    np.testing.assert_array_equal(found.ints, expected.ints)
