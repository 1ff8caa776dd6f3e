import numpy as np
import pytest
import torch

from fedmr_flwr.config.data import Data
from fedmr_flwr.config.loading import parse
from fedmr_flwr.config.partition import Partition
from fedmr_flwr.data import datasets, skew
from fedmr_flwr.data.base import Dataset, Examples, Normalisation
from fedmr_flwr.errors import ConfigError

DIGITS = datasets.load(Data(), None)
COLOURS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 9, 7), dtype=np.uint8))


def coloured():
    examples = Examples(COLOURS, torch.arange(6))
    return Dataset(examples, examples, 6, Normalisation((0.5,), (0.5,)))


@pytest.mark.parametrize("kind", ["rotation", "brightness", "blur", "colour", "source"])
def test_each_client_has_a_change_of_its_own(kind):
    data, partition = coloured(), Partition(skew=kind, skew_strength=1)
    found = [skew.of_client(data.train, data, partition, 0, client).inputs for client in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert found[0].shape == COLOURS.shape and found[0].dtype == torch.uint8
    other = skew.of_client(data.train, data, partition, 1, 0).inputs
    assert not torch.equal(found[0], other), "another seed draws other changes"


@pytest.mark.parametrize("kind", ["rotation", "brightness", "blur", "source"])
def test_pixels_stay_on_their_scale(kind):
    for client in range(10):
        found = skew.of_client(DIGITS.train, DIGITS, Partition(skew=kind, skew_strength=1), 0, client)
        assert int(found.inputs.max()) <= 16


def test_brightness_is_a_factor():
    data = coloured()
    found = skew.of_client(data.train, data, Partition(skew="brightness", skew_strength=0.2), 0, 3).inputs
    dim = (COLOURS > 20) & (COLOURS < 150)
    factors = found[dim] / COLOURS[dim]
    assert float(factors.max() - factors.min()) < 0.05
    assert 4**-0.2 - 0.05 < float(factors.mean()) < 4**0.2 + 0.05


def test_all_is_each_clients_part():
    partition = Partition(skew="rotation")
    parts = [np.array([0, 2, 4]), np.array([1, 5])]
    data = coloured()
    found = skew.of_all(data, parts, partition, 0).inputs
    for client, part in enumerate(parts):
        own = skew.of_client(data.train.select(part, torch.device("cpu")), data, partition, 0, client)
        assert torch.equal(found[part], own.inputs)
    assert torch.equal(found[3], COLOURS[3]), "no client has it"
    assert torch.equal(data.train.inputs, COLOURS), "the data set stays"


def test_no_skew_changes_nothing():
    assert skew.of_client(DIGITS.train, DIGITS, Partition(), 0, 1) is DIGITS.train
    assert skew.of_all(DIGITS, [], Partition(), 0) is DIGITS.train


def test_skew_of_other_data_is_refused():
    table = datasets.load(Data(name="breast-cancer"), None)
    with pytest.raises(ConfigError, match="partition.skew: blur is for uint8 images"):
        skew.check(table, Partition(skew="blur"))
    with pytest.raises(ConfigError, match="partition.skew: colour is for images in colour"):
        skew.check(DIGITS, Partition(skew="colour"))
    with pytest.raises(ConfigError, match="partition.skew-strength: it needs partition.skew"):
        parse({"partition": {"skew-strength": 0.7}}, "test")
    with pytest.raises(ConfigError, match="partition.skew: it changes the clients' parts"):
        parse({"partition": {"name": "nodes", "skew": "blur"}}, "test")
