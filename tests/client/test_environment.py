import json

import numpy as np
import pytest
import torch

from fedmr_flwr.client import environment
from fedmr_flwr.client.data_spec import DataSpec
from fedmr_flwr.client.environment import SimulatedEnvironment
from fedmr_flwr.client.node import NodeEnvironment, private_errors
from fedmr_flwr.config.data import Data
from fedmr_flwr.config.evaluation import Evaluation
from fedmr_flwr.config.partition import Partition
from fedmr_flwr.data import datasets, partition_files, partitions
from fedmr_flwr.data.base import Normalisation
from fedmr_flwr.errors import ConfigError, DataError
from fedmr_flwr.runs.folder import RunFolder

SPEC = DataSpec((1, 8, 8), 10, Normalisation((0.5,), (0.25,), 16.0, 3), 16)
RUN = "0123456789abcdef"


@pytest.fixture
def own(tmp_path):
    """Return a function that writes a node's npz file and returns its configuration: own(y_train=...)."""

    def make(**arrays):
        rng = np.random.default_rng(0)
        good = {"x_train": rng.integers(0, 17, (12, 8, 8), np.uint8), "y_train": np.arange(12) % 10}
        np.savez(tmp_path / "own.npz", **(good | arrays))
        return {"partition-id": 2, "data": str(tmp_path / "own.npz"), "device": "cpu", "state": str(tmp_path / "s")}

    return make


def of_its_own(toy, node_config, spec=SPEC, run=RUN):
    settings = toy().model_copy(update={"partition": Partition(name="nodes")})
    return NodeEnvironment(settings, node_config, spec, run)


def test_data_spec_survives_json():
    assert DataSpec.from_json(SPEC.to_json()) == SPEC
    text = DataSpec((80,), 90, None, 89)
    assert DataSpec.from_json(text.to_json()) == text


def test_node_prepares_its_own_file(toy, own):
    site = of_its_own(toy, own())
    dataset, examples = site.examples()
    assert site.prepare("whatever the server has") == len(examples) == 12
    assert examples.inputs.shape == (12, 1, 8, 8)
    assert examples.labels.tolist() == [*range(10), 0, 1]
    assert (dataset.classes, dataset.background) == (10, 3)
    prepared = dataset.prepare(examples.inputs)
    torch.testing.assert_close(prepared, (examples.inputs.float() / 16 - 0.5) / 0.25)
    assert (site.number, site.device) == (2, torch.device("cpu"))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y_train": np.arange(12)}, "has the label 11; expected 0 to 9"),
        ({"x_train": np.zeros((12, 9, 9), np.uint8)}, r"expected examples of shape \[1, 8, 8\]"),
        ({"x_train": np.zeros((12, 3, 8, 8), np.uint8)}, r"expected examples of shape \[1, 8, 8\]"),
        ({"x_train": np.full((12, 8, 8), 17, np.uint8)}, "has pixels up to 17, but the run's data end at 16"),
        ({"x_train": np.full((12, 8, 8), 240, np.uint8)}, "has pixels up to 240, but the run's data end at 16"),
        ({"x_train": np.zeros((12, 8, 8), int)}, "it must be uint8"),
        ({"x_train": np.zeros((12, 1, 8, 8))}, "the run's data are bytes, but those of .*own.npz are float values"),
        ({"y_train": np.arange(11)}, "expected 12 non-negative integers"),
    ],
)
def test_unfit_file_is_named(toy, own, arrays, words):
    node_config = own(**arrays)
    # Before the first round, and in each one: a file may be replaced during a run.
    for use in (lambda site: site.prepare(""), NodeEnvironment.examples, NodeEnvironment.tests):
        with pytest.raises(DataError, match=words) as caught:
            use(of_its_own(toy, node_config))
        assert "own.npz" in str(caught.value)


def test_node_splits_like_the_server(toy, own, tmp_path, monkeypatch):
    settings = toy("clients=6")
    (tmp_path / "data").mkdir()
    node_config = own() | {"data": str(tmp_path / "data")}
    dataset = datasets.load(settings.data, None)
    part = partitions.split(dataset, 6, settings.partition, settings.seed)[2]
    assert NodeEnvironment(settings, node_config, SPEC, RUN).prepare(dataset.digest()) == len(part)
    monkeypatch.setattr(environment.partitions, "split", None)
    _, examples = NodeEnvironment(settings, node_config, SPEC, RUN).examples()
    assert torch.equal(examples.inputs, dataset.train.inputs[part])
    with pytest.raises(DataError, match="this client's data differ from the server's"):
        NodeEnvironment(settings, node_config, SPEC, RUN).prepare("another")


@pytest.mark.parametrize("name", ["npz:/etc/passwd", "npz:own.npz", "csv:/etc/passwd"])
def test_server_cannot_name_data_files(toy, own, tmp_path, name):
    settings = toy().model_copy(update={"data": Data(name=name)})
    with pytest.raises(ConfigError, match="set data to a copy of them, an npz file on the node, or one of csv:PATH"):
        NodeEnvironment(settings, own() | {"data": str(tmp_path)}, SPEC, RUN)
    with pytest.raises(DataError, match="own.npz"):
        NodeEnvironment(settings, own(x_train="damaged"), SPEC, RUN).prepare("")


def test_server_cannot_name_functions(toy, own):
    settings = toy().model_copy(update={"data": Data(name="os:listdir")})
    with pytest.raises(ConfigError, match="a node cannot call a function of the server: data.name=os:listdir; set"):
        NodeEnvironment(settings, own(), SPEC, RUN)


def table_of(folder):
    rng = np.random.default_rng(0)
    rows = [f"{age},{'abc'[at % 3]},{at % 2}" for at, age in enumerate(rng.normal(50, 9, 60).round(2))]
    folder.mkdir()
    (folder / "patients.csv").write_text("\n".join(["age,ward,sick", *rows]))
    return folder / "patients.csv"


def test_node_divides_its_copy_of_the_files(toy, own, tmp_path):
    """The path is the node's; size and columns are the run's."""
    there, here = table_of(tmp_path / "server"), table_of(tmp_path / "node")
    settings = toy("data.label=sick", f"data.name=csv:{there}", "clients=4", "partition.name=iid")
    dataset = datasets.load(settings.data, None, settings.seed)
    part = partitions.split(dataset, 4, settings.partition, settings.seed)[2]
    there.unlink()
    site = NodeEnvironment(settings, own() | {"data": f"csv:{here}"}, DataSpec.of(dataset), RUN)
    assert site.prepare(dataset.digest()) == len(part)
    assert torch.equal(site.examples()[1].inputs, dataset.train.inputs[part])
    (tmp_path / "other.csv").write_text(here.read_text().replace(",a,", ",b,", 1))
    other = NodeEnvironment(settings, own() | {"data": f"csv:{tmp_path / 'other.csv'}"}, DataSpec.of(dataset), RUN)
    with pytest.raises(DataError, match="differ from the server's; use the same files .*, or .*=nodes for data of"):
        other.prepare(dataset.digest())


def test_node_changes_its_part_as_a_simulation(toy, own, tmp_path):
    settings = toy("clients=6", "partition.skew=source", "partition.test-fraction=0.3", "evaluation.clients=end")
    site = NodeEnvironment(settings, own() | {"data": str(tmp_path)}, SPEC, RUN)
    settings.run_dir.mkdir()
    out = RunFolder(settings.run_dir)
    dataset = datasets.load(settings.data, None)
    parts = partitions.split(dataset, 6, settings.partition, settings.seed)
    partition_files.save(parts, out.partition)
    partition_files.save(partitions.client_tests(dataset, parts, settings.partition, settings.seed), out.client_tests)
    simulated = SimulatedEnvironment(settings, 2)
    assert torch.equal(site.examples()[1].inputs, simulated.examples()[1].inputs)
    assert torch.equal(site.tests().inputs, simulated.tests().inputs)
    assert not torch.equal(site.examples()[1].inputs, dataset.train.inputs[parts[2]])


@pytest.mark.parametrize("name", ["file:/etc/hostname", "file:own.npz"])
def test_server_cannot_name_partition_files(toy, own, tmp_path, name):
    settings = toy().model_copy(update={"partition": Partition(name=name)})
    with pytest.raises(ConfigError, match="a node cannot open a file of the server"):
        NodeEnvironment(settings, own() | {"data": str(tmp_path)}, SPEC, RUN)


def test_errors_hide_the_nodes_paths(toy, own, tmp_path):
    node_config = own() | {"name": "gpu-a", "data": str(tmp_path / "patients.npz")}
    with pytest.raises(DataError, match="^gpu-a: .*patients.npz") as caught, private_errors(node_config):
        of_its_own(toy, node_config).prepare("")
    assert str(tmp_path) not in str(caught.value)


def test_node_downloads_nothing(toy, own, tmp_path, monkeypatch):
    from torchvision.datasets import FashionMNIST

    asked = []
    monkeypatch.setattr(FashionMNIST, "download", lambda self: asked.append(self.root))
    settings = toy().model_copy(update={"data": Data(name="fashion-mnist", download=True)})
    with pytest.raises(DataError, match="FashionMNIST is not in"):
        NodeEnvironment(settings, own() | {"data": str(tmp_path)}, SPEC, RUN).prepare("")
    assert asked == []


@pytest.mark.parametrize("run", ["../../elsewhere", "", "0123456789ABCDEF", json.dumps(RUN)])
def test_server_cannot_choose_write_paths(toy, own, run):
    with pytest.raises(ConfigError, match="invalid run identifier"):
        of_its_own(toy, own(), run=run)


def test_data_must_match_the_partition(toy, own, tmp_path):
    with pytest.raises(ConfigError, match="client 2 has the folder of a data set, but the run needs"):
        of_its_own(toy, own() | {"data": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"set partition\.name=nodes if each client has its own examples"):
        NodeEnvironment(toy(), own(), SPEC, RUN)


@pytest.mark.parametrize("value", [0, 1, 16])
def test_dark_images_are_on_the_same_scale(toy, own, value):
    assert of_its_own(toy, own(x_train=np.full((12, 8, 8), value, np.uint8))).prepare("") == 12


@pytest.mark.parametrize(
    ("spec", "ceiling"),
    [
        (SPEC, 16),  # its white is published
        (DataSpec((1, 8, 8), 10, Normalisation((0.5,), (0.25,)), 255), 255),
        (DataSpec((1, 8, 8), 10, Normalisation((0.5,), (0.25,)), 250), 255),
        (DataSpec((1, 8, 8), 10, Normalisation((0.5,), (0.25,)), 16), 32),  # a file of one's own
        (DataSpec((80,), 90, None, 61), 89),  # the model knows 90 characters
        (DataSpec((30,), 2, None, 4.5, floats=True), 45),
        (DataSpec((80,), 2, None, 61), 61),  # a model of one's own, whose labels are no characters
    ],
)
def test_ceiling_of_a_nodes_values(spec, ceiling):
    assert spec.ceiling == ceiling


def test_unknown_characters_are_refused(toy, own):
    spec = DataSpec((80,), 90, None, 89)
    texts = np.full((12, 80), 89, np.uint8)
    assert of_its_own(toy, own(x_train=texts), spec).prepare("") == 12
    with pytest.raises(DataError, match="has characters up to 90, but the run's data end at 89"):
        of_its_own(toy, own(x_train=texts + 1), spec).prepare("")


def test_server_states_what_its_data_end_at(toy):
    assert DataSpec.of(datasets.load(toy().data, None)).largest == 16


def test_node_has_its_own_tests(toy, own):
    rng = np.random.default_rng(1)
    tests = {"x_test": rng.integers(0, 17, (4, 8, 8), np.uint8), "y_test": np.arange(4)}
    site = of_its_own(toy, own(**tests))
    assert site.tests().labels.tolist() == [0, 1, 2, 3]
    assert site.prepare("any") == len(site.examples()[1]) == 12


def test_node_holds_out_a_fraction(toy, own):
    settings = toy().model_copy(update={"partition": Partition(name="nodes", test_fraction=0.25)})
    site = NodeEnvironment(settings, own(), SPEC, RUN)
    assert (site.prepare("any"), len(site.examples()[1]), len(site.tests())) == (9, 9, 3)
    held = {image.numpy().tobytes() for image in site.tests().inputs}
    assert not held & {image.numpy().tobytes() for image in site.examples()[1].inputs}


def test_node_without_tests_has_none(toy, own):
    assert of_its_own(toy, own()).tests() is None
    evaluation = Evaluation(clients="end", fine_tune=3)
    settings = toy().model_copy(update={"partition": Partition(name="nodes"), "evaluation": evaluation})
    with pytest.raises(DataError, match=r"own.npz has no x_test and y_test, which evaluation.fine-tune needs"):
        NodeEnvironment(settings, own(), SPEC, RUN).prepare("any")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_test": np.zeros((4, 8, 8), np.uint8)}, "contains only one of x_test and y_test"),
        ({"x_test": np.zeros((4, 9, 9), np.uint8), "y_test": np.arange(4)}, r"examples of shape \[1, 8, 8\]"),
        ({"x_test": np.full((4, 8, 8), 99, np.uint8), "y_test": np.arange(4)}, "has pixels up to 99"),
    ],
)
def test_wrong_node_tests_are_refused(toy, own, arrays, words):
    with pytest.raises(DataError, match=words):
        of_its_own(toy, own(**arrays)).prepare("any")


def test_folder_node_has_its_part_of_the_tests(toy, own, tmp_path):
    partition = Partition(name="dirichlet", test_fraction=0.25)
    settings = toy().model_copy(update={"partition": partition})
    site = NodeEnvironment(settings, own() | {"data": str(tmp_path)}, SPEC, RUN)
    data = datasets.load(Data(), None)
    parts = partitions.split(data, settings.clients, partition, settings.seed)
    held = partitions.client_tests(data, parts, partition, settings.seed)[2]
    torch.testing.assert_close(site.tests().inputs, data.train.inputs[held])
    assert len(site.examples()[1]) == len(parts[2])


def test_node_reads_float_values(toy, own):
    values = np.random.default_rng(0).normal(size=(12, 5))
    spec = DataSpec((5,), 10, None, 3.0, floats=True)
    site = of_its_own(toy, own(x_train=values), DataSpec.from_json(spec.to_json()))
    assert site.prepare("") == 12
    np.testing.assert_array_equal(site.examples()[1].inputs, values.astype("f4"))
    with pytest.raises(DataError, match="has values up to 300, but the run's data end at 3 "):
        of_its_own(toy, own(x_train=np.full((12, 5), -300.0)), spec).prepare("")
    with pytest.raises(DataError, match="the run's data are float values, but those of .*own.npz are bytes"):
        of_its_own(toy, own(x_train=np.zeros((12, 5), "u1")), spec).prepare("")


def test_node_has_the_sealing_key_of_its_settings(toy, own, tmp_path):
    (tmp_path / "sealing.key").write_text("ab" * 32)
    node_config = own() | {"sealing-key": str(tmp_path / "sealing.key"), "name": "node-2"}
    assert of_its_own(toy, node_config).sealing_key == b"\xab" * 32
    (tmp_path / "sealing.key").write_text("ab")
    with pytest.raises(ConfigError, match="cannot read .*sealing.key: it has 1 bytes, not 32"):
        of_its_own(toy, node_config).sealing_key  # noqa: B018
    with pytest.raises(ConfigError, match="needs a key that all nodes have and the server does not"):
        of_its_own(toy, own()).sealing_key  # noqa: B018


def test_pinned_node_with_a_key_takes_part_in_sealed_runs_alone(toy, own, tmp_path):
    node_config = own() | {"sealing-key": str(tmp_path / "sealing.key"), "app-sha256": "0" * 64, "name": "node-2"}
    with pytest.raises(ConfigError, match="this node takes part in sealed runs alone; set privacy.sealed=true, or"):
        of_its_own(toy, node_config)
    sealed = toy("privacy.sealed=true").model_copy(update={"partition": Partition(name="nodes")})
    assert NodeEnvironment(sealed, node_config, SPEC, RUN)
    for key in ("sealing-key", "app-sha256"):
        assert of_its_own(toy, {name: value for name, value in node_config.items() if name != key})


def test_evaluator_has_tests_of_its_own_in_any_partition(toy, own):
    rng = np.random.default_rng(0)
    tests = {"x_test": rng.integers(0, 17, (5, 8, 8), np.uint8), "y_test": np.arange(5)}
    node_config = own(**tests) | {"role": "evaluator", "name": "node-9"}
    site = NodeEnvironment(toy("privacy.sealed=true"), node_config, SPEC, RUN)
    assert site.prepare("")
    assert len(site.tests()) == 5
    with pytest.raises(ConfigError, match="it is an evaluator, which scores the models of sealed runs alone"):
        NodeEnvironment(toy(), node_config, SPEC, RUN).prepare("")
