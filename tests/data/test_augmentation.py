import numpy as np
import torch

from fedmr_flwr.data import augmentation

RNG = np.random.default_rng(0)


def by_hand(image, row, column, flip):
    """Pad [C, H, W] by an eighth, cut, and flip, the slow way."""
    channels, height, width = image.shape
    down, across = height // 8, width // 8
    padded = np.zeros((channels, height + 2 * down, width + 2 * across), np.uint8)
    padded[:, down : down + height, across : across + width] = image
    cut = padded[:, row : row + height, column : column + width]
    return cut[:, :, ::-1] if flip else cut


def test_crops_and_flips_as_drawn():
    images = RNG.integers(0, 256, (40, 3, 16, 24), dtype=np.uint8)
    drawn = augmentation.draw(40, (16, 24), np.random.default_rng(1))
    changed = augmentation.crop_and_flip(torch.from_numpy(images), drawn)
    assert changed.dtype == torch.uint8
    for image, found, change in zip(images, changed.numpy(), drawn.tolist(), strict=True):
        np.testing.assert_array_equal(found, by_hand(image, *change))


def test_draws_cover_all_shifts():
    drawn = augmentation.draw(4000, (32, 16), np.random.default_rng(1)).numpy()
    assert set(drawn[:, 0]) == set(range(9)), "4 pixels to each side of 32"
    assert set(drawn[:, 1]) == set(range(5)), "2 pixels to each side of 16"
    assert abs(drawn[:, 2].mean() - 0.5) < 0.03
    assert abs(np.corrcoef(drawn.T)[np.triu_indices(3, 1)]).max() < 0.05, "the three are drawn independently"


def test_no_shift_changes_nothing():
    images = torch.from_numpy(RNG.integers(0, 256, (1, 3, 32, 32), dtype=np.uint8))
    assert torch.equal(augmentation.crop_and_flip(images, torch.tensor([[4, 4, 0]])), images)
    assert torch.equal(augmentation.crop_and_flip(images, torch.tensor([[4, 4, 1]])), images.flip(3))
