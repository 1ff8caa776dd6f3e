import numpy as np
import pytest
import torch
from PIL import Image

from fedmr_flwr.config.data import Data
from fedmr_flwr.data import datasets
from fedmr_flwr.data.base import Facts
from fedmr_flwr.data.own import ExampleFormat
from fedmr_flwr.errors import DataError


def load(folder, seed=0, **options):
    return datasets.load(Data(name=f"folder:{folder}", **options), None, seed)


def save(path, value, size=(6, 4), mode="L"):
    """Save an image of one value, of width and height `size`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).convert(mode).save(path)


@pytest.fixture
def pets(tmp_path):
    """Return a folder with 20 dark cats and 10 bright dogs of different sizes."""
    for kind, count, value in (("cat", 20, 40), ("dog", 10, 200)):
        for number in range(count):
            save(tmp_path / "pets" / kind / f"{number}.png", value + number, (6 + number, 9))
    return tmp_path / "pets"


def test_folders_are_classes(pets):
    data = load(pets, size=8)
    assert (data.input_shape, data.classes, data.facts.names) == ((1, 8, 8), 2, ("cat", "dog"))
    assert torch.equal(data.train.labels == 1, data.train.inputs[:, 0, 0, 0] >= 200)


def test_test_part_is_a_fifth_of_each_class(pets):
    data = load(pets, size=8)
    assert data.train.labels.bincount().tolist() == [16, 8]
    assert data.test.labels.bincount().tolist() == [4, 2]


def test_seed_draws_the_test_part(pets):
    same, other = load(pets, 0, size=8), load(pets, 1, size=8)
    assert same.digest() == load(pets, 0, size=8).digest() != other.digest()


def test_stated_parts_stay(pets):
    (pets.parent / "both").mkdir()
    pets.rename(pets.parent / "both" / "train")
    save(pets.parent / "both" / "test" / "dog" / "a.jpg", 255)
    data = load(pets.parent / "both", size=[4, 5])
    assert (len(data.train), data.test.labels.tolist(), data.input_shape) == (30, [1], (1, 4, 5))
    copies = {path.name for path in (pets.parent / "both").glob(".*.safetensors")}
    load(pets.parent / "both", 1, size=[4, 5])
    assert {path.name for path in (pets.parent / "both").glob(".*.safetensors")} == copies, (
        "no draw depends on the seed"
    )


def test_images_are_read_once(pets, monkeypatch):
    before = load(pets, size=8).digest()
    datasets._load.cache_clear()
    monkeypatch.setattr(datasets.ImageFolder, "read", None)
    assert load(pets, size=8).digest() == before


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_is_read(tmp_path, mode):
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    for kind in "ab":
        for number in range(5):
            path = tmp_path / kind / f"{number}.{suffix}"
            path.parent.mkdir(exist_ok=True)
            if mode == "I;16":
                Image.fromarray(np.full((4, 4), 255 * 257, np.uint16)).save(path)
            else:
                Image.new("L", (4, 4), 255).convert(mode).save(path)
    data = load(tmp_path)
    assert data.input_shape == ((1 if mode in ("1", "L", "LA", "I;16") else 3), 4, 4)
    assert data.train.inputs.unique().tolist() == [255]


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_16_bits_must_be_used(tmp_path, form):
    """Of 12 bits, the upper 8 of 16 are 0 to 15: images of 8 bits in 16 were all black."""
    for kind in "ab":
        for number in range(5):
            (tmp_path / kind).mkdir(exist_ok=True)
            pixels = np.full((4, 4), 4000 + number, np.uint16 if form == "png" else np.int32)
            Image.fromarray(pixels).save(tmp_path / kind / f"{number}.{form}")
    with pytest.raises(DataError, match=r"16 bits have no value above 400\d, and of 16 bits the upper 8"):
        load(tmp_path)


def test_one_colour_image_makes_all_colour(pets):
    Image.new("RGB", (5, 5), (255, 0, 10)).save(pets / "dog" / "red.png")
    data = load(pets, size=8)
    assert data.input_shape == (3, 8, 8)
    red = torch.cat([data.train.inputs, data.test.inputs])
    assert [255, 0, 10] in red[:, :, 0, 0].tolist()


def test_black_is_behind_transparency(tmp_path):
    for kind in "ab":
        for number in range(5):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.new("RGBA", (2, 2), (255, 255, 255, 0)).save(tmp_path / kind / f"{number}.png")
    assert load(tmp_path).train.inputs.unique().tolist() == [0]


def test_camera_orientation_counts(pets):
    image = Image.new("L", (6, 9), 0)
    image.paste(255, (0, 0, 6, 3))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    image.save(pets / "cat" / "turned.png", exif=exif)
    data = load(pets, size=[9, 6])
    found = torch.cat([data.train.inputs, data.test.inputs])[:, 0, :, 0]
    assert [0] * 6 + [255] * 3 in found.tolist()


def test_unreadable_image_is_named(pets):
    (pets / "cat" / "7.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read .*cat/7\.png: .*replace it with a readable image"):
        load(pets, size=8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda pets: (pets / "empty").mkdir(), r"the folder of the class 'empty' is empty: .*/empty; put"),
        (lambda pets: (pets / "cat" / "more").mkdir(), r"cat/more is a folder in that of a class"),
        (lambda pets: None, r"has 9x\d+ pixels \(height x width\) but .* has 9x\d+; set data.size"),
        (lambda pets: save(pets / "train" / "cat" / "a.png", 1) or save(pets / "test" / "cow" / "a.png", 1),
         "the label 'cow' occurs only in the test part of .*pets; add training examples of it"),
        (lambda pets: save(pets / "train" / "a.png", 1) or (pets / "test").mkdir(), "train has no folders; make one"),
    ],
)  # fmt: skip
def test_unfit_folder_is_one_line(pets, change, words):
    change(pets)
    with pytest.raises(DataError, match=words):
        load(pets)


def test_one_class_is_refused(tmp_path):
    for number in range(9):
        save(tmp_path / "only" / f"{number}.png", number)
    with pytest.raises(DataError, match="has only the label 'only'; a classification needs at least two"):
        load(tmp_path)


def test_missing_folder_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"none is not a folder; write folder:PATH"):
        load(tmp_path / "none")


def test_rare_class_is_for_training(pets):
    save(pets / "owl" / "a.png", 1)
    for seed in range(5):
        assert load(pets, seed, size=8).train.labels.bincount()[2] == 1


def test_numbers_are_in_the_order_of_their_size(tmp_path):
    for kind in ("10", "9", "1"):
        for number in range(5):
            save(tmp_path / kind / f"{number}.png", 3)
    assert load(tmp_path).facts.names == ("1", "9", "10")


def test_node_reads_its_folder_in_the_servers_form(tmp_path):
    save(tmp_path / "node" / "dog" / "a.png", 200, (30, 20), "RGB")
    form = ExampleFormat((1, 8, 8), 3, Facts(("cat", "cow", "dog")))
    train, tests = datasets.read_examples(f"folder:{tmp_path / 'node'}", Data(), form)
    assert (train.inputs.shape, train.labels.tolist(), tests) == ((1, 1, 8, 8), [2], None)
    save(tmp_path / "node" / "owl" / "a.png", 200)
    with pytest.raises(DataError, match="has the label 'owl', which the run's data do not have: their labels"):
        datasets.read_examples(f"folder:{tmp_path / 'node'}", Data(), form)
