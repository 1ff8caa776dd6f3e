"""The command line: what it prints and how it ends."""

import json
import re
import socket
import subprocess
import sys

import pytest
import yaml
from matplotlib.image import imread

import fedmr_flwr
from fedmr_flwr.config.paths import bundled_names

TINY = [
    "rounds=2",
    "clients=6",
    "clients-per-round=2",
    "training.local-epochs=1",
    "partition.name=iid",
    "device=cpu",
]


def test_run_prints_folder_and_table(fedmr, tmp_path, no_pictures):
    status, out, _ = fedmr("run", "run.yaml", *TINY, "strategy.first-stage-rounds=1", "--engine", "in-process")
    assert status == 0
    lines = [line for line in out.splitlines() if line.strip()]
    (folder,) = (tmp_path / "runs").iterdir()
    assert lines[0] == lines[-1] == f"run folder: {folder}"
    assert any(line.startswith("round 2/2  accuracy ") for line in lines)
    assert any("test accuracy" in line for line in lines)
    assert any("best test accuracy" in line for line in lines)
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["engine"] == "in-process"
    assert resolved["strategy"]["first-stage-rounds"] == 1
    assert resolved["strategy"]["unit"] == "layer", "defaults are written out, too"


def test_a_short_trial_of_a_long_run_may_be_continued(fedmr, tmp_path, no_pictures):
    with (tmp_path / "run.yaml").open("a") as file:
        file.write("\nrounds: 20\nkeep-models: [1, 15]\n")
    run = ["run", "run.yaml", *TINY, "run-dir=out", "--engine", "in-process"]
    for command in (run, ["resume", "out", "rounds=3"], ["score", "out", "--json"]):
        status, out, err = fedmr(*command)
        assert (status, err) == (0, "")
    assert json.loads(out)["rounds"] == 3


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["roundz=3"], ["'roundz=3': unknown key 'roundz'; did you mean 'rounds'?"]),
        (["rounds=many"], ["'rounds=many': Input should be a valid integer"]),
        (["clients-per-round=7"], ["clients-per-round is 7", "only 6 clients", "lower clients-per-round"]),
        (["partition.alpha=0"], ["'partition.alpha=0'", "greater than 0"]),
        (["training.local-epochs=0"], ["'training.local-epochs=0'", "greater than 0"]),
        (["data.name=fashion-mnist", "data-dir=nowhere"], ["nowhere", "train-images-idx3-ubyte", "data-dir=FOLDER"]),
        (["strategy.unit=blocks"], ["'strategy.unit=blocks'", "choose one of tensor, layer, block"]),
        (["strategy.unit=[conv, nothing]"], ["strategy.unit: no pattern matches 'hidden.0.weight'"]),
        (["strategy.population=1"], ["strategy.population: 1 is less than the 2 clients of a round"]),
        (["min-good-replies=3"], ["min-good-replies is 3, more than the 2 clients of a round"]),
        (["round-timeout=0"], ["'round-timeout=0'", "greater than 0"]),
        (
            ["strategy.local-rule=fedpox"],
            ["'strategy.local-rule=fedpox': unknown algorithm 'fedpox'; choose one of clusamp"],
        ),
        (["strategy.mu=0.1"], ["unknown key 'strategy.mu'"]),
        (["strategy.name=fedprox", "strategy.mu=-1"], ["'strategy.mu=-1'", "greater than or equal to 0"]),
        (["guard=1"], ["'guard=1'", "greater than 1"]),
        (["device=cuda:7"], ["device is cuda:7", "device=auto or cpu"]),
        (["engine=spark"], ["unknown engine 'spark'", "ray, in-process"]),
    ],
)
def test_mistakes_are_one_line(fedmr, tmp_path, monkeypatch, overrides, words):
    from torchvision.datasets import FashionMNIST

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(FashionMNIST, "download", no_network)
    status, out, err = fedmr("run", "run.yaml", *TINY, "engine=in-process", "run-dir=out", *overrides)
    assert status == 1
    assert err.startswith("fedmr: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    for word in words:
        assert word in err
    assert not (tmp_path / "out").exists()


def test_units_prints_a_table(fedmr):
    status, out, _ = fedmr("units", "run.yaml", "strategy.unit=block")
    assert status == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert rows[0] == ["conv1", "2", "160", "1.17 %", "conv1.weight, conv1.bias"]  # 16 * 9 + 16 of 13,706
    assert [row[0] for row in rows] == ["conv1", "conv2", "hidden", "classifier"]
    assert sum(int(row[2].replace(",", "")) for row in rows) == 13706
    assert "unit block: 4 units, 8 tensors, 13,706 values" in out
    status, out, _ = fedmr("units", "run.yaml", "strategy.unit=[conv, '[a-z]']")
    assert status == 0
    assert "[a-z]" in out
    status, _, err = fedmr("units", "run.yaml", "strategy.name=fedavg")
    assert (status, err) == (1, "fedmr: error: fedavg does not recombine; choose strategy.name=fedmr\n")


@pytest.mark.slow
def test_partition_saves_what_a_run_uses(fedmr, tmp_path):
    settings = ["clients=6", "clients-per-round=2", "partition.name=shards", "partition.shards-per-client=1"]
    status, out, _ = fedmr("partition", "run.yaml", *settings)
    assert status == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4", "5", "fewest", "median", "most"]
    assert sum(int(row[1].replace(",", "")) for row in rows[:6]) == 1438
    assert all(int(row[2]) <= 3 for row in rows[:6])
    assert "digits, 6 clients, shards of 1" in out
    assert out.split()[-2:] == ["partition/partition.npz", "partition/clients.png"]
    status, out, _ = fedmr("partition", "run.yaml", "partition.skew=rotation", "--out", "skewed")
    assert (status, out.split()[-1]) == (0, "skewed/skew.png")
    assert imread(tmp_path / "skewed/skew.png").std() > 0.1
    status, out, _ = fedmr("partition", "run.yaml", "clients=300", "--out", "many")
    assert status == 0
    assert len([line for line in out.splitlines() if line.startswith("│")]) == 3
    status, _, err = fedmr("partition", "run.yaml")
    assert (status, err) == (1, "fedmr: error: partition is not empty; choose another folder with --out FOLDER\n")

    saved = tmp_path / "partition" / "partition.npz"
    status, _, err = fedmr(
        "run", "run.yaml", *TINY, "rounds=1", "engine=in-process", "run-dir=out", f"partition.name=file:{saved}"
    )
    assert (status, err) == (0, "")
    assert (tmp_path / "out" / "partition.npz").read_bytes() == saved.read_bytes()


@pytest.mark.slow
def test_plot_draws_a_runs_pictures(fedmr, tmp_path):
    assert fedmr("run", "run.yaml", *TINY, "engine=in-process", "run-dir=out")[0] == 0
    pictures = [tmp_path / "out" / name for name in ("curves.png", "diversity.png", "lineage.png")]
    for picture in pictures:
        picture.unlink()
    status, out, _ = fedmr("plot", "out")
    assert status == 0
    assert out.split() == [str(picture) for picture in pictures]
    assert all(picture.stat().st_size > 0 for picture in pictures)
    status, out, _ = fedmr("plot", "out", "--format", "svg")
    assert (status, out.split()) == (0, [str(picture.with_suffix(".svg")) for picture in pictures])
    (tmp_path / "out" / "metrics.jsonl").unlink()
    status, _, err = fedmr("plot", "out")
    assert (status, err) == (1, "fedmr: error: out has no completed round yet, so there is nothing to draw\n")
    status, _, err = fedmr("plot", "nowhere")
    assert status == 1
    assert "nowhere is not a run folder: its config.yaml is missing" in err


def test_prints_accuracy_over_clients(fedmr, tmp_path, no_pictures):
    status, out, _ = fedmr("run", "run.yaml", *TINY, "engine=in-process", "evaluation.clients=end", "run-dir=out")
    assert status == 0
    over = json.loads((tmp_path / "out" / "manifest.json").read_text())["client-accuracy"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "clients.jsonl").read_text().splitlines()]
    assert [row["client"] for row in rows] == [0, 1, 2, 3, 4, 5] and over["clients"] == 6
    assert f"accuracy over clients: mean {over['mean']:.4f}, standard deviation" in out
    assert "(6 clients, on their training examples)" in out
    assert 0 <= over["worst-tenth"] == min(row["accuracy"] for row in rows) <= over["mean"] <= 1


def test_truncated_data_file_is_named(fedmr, tmp_path):
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{part}-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x63short")
    status, _, err = fedmr("run", "run.yaml", *TINY, "engine=in-process", "data.name=fashion-mnist", "data-dir=.")
    assert status == 1
    assert "train-images-idx3-ubyte: it states 99 bytes of data but has 5; replace it" in err


def test_used_run_folder_is_refused(fedmr, tmp_path, no_pictures):
    arguments = ["run", "run.yaml", *TINY, "rounds=1", "engine=in-process", "run-dir=out"]
    assert fedmr(*arguments)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    status, _, err = fedmr(*arguments)
    assert status == 1
    assert "out already contains a run; choose another folder with run-dir=FOLDER" in err
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_missing_configuration_is_named(fedmr):
    status, _, err = fedmr("run", "none.yaml")
    assert status == 1
    assert err == (
        "fedmr: error: there is no configuration none.yaml; give the path of a file, or a name that "
        "`fedmr run --help` lists\n"
    )
    assert fedmr("run", "fashion-mnist")[2].endswith("; did you mean fashion-mnist-cnn?\n")


def test_help_lists_the_configurations(fedmr):
    status, out, _ = fedmr("run", "--help")
    assert status == 0
    assert set(bundled_names()) <= set(out.replace(",", " ").split())


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "conf/quickstart.yaml"])
def test_configurations_are_found_by_name(fedmr, name):
    status, out, err = fedmr("units", name)
    assert (status, err) == (0, "")
    assert "13,706 values" in out


def test_own_file_comes_before_a_name(fedmr, tmp_path):
    (tmp_path / "quickstart").write_text("model: {name: mlp}\n")
    assert "13,706 values" not in fedmr("units", "quickstart")[1]


def test_occupied_port_is_named(fedmr, tmp_path, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", str(port))
        status, _, err = fedmr("run", "run.yaml", *TINY, "run-dir=out")
    assert status == 1
    assert err.count("\n") == 1
    assert f"port {port} of FLWR_LOCAL_SUPERLINK_HTTP_API_PORT cannot be used" in err
    assert "unset the variable" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("override", ["client-cpus=4096", "ray.client-gpus=512"])
def test_excess_resources_are_refused(fedmr, tmp_path, override):
    status, _, err = fedmr("run", "run.yaml", *TINY, "run-dir=out", override)
    key = override.partition("=")[0]
    assert status == 1
    assert err.startswith(f"fedmr: error: {key} is ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_interrupted_run_exits_130(fedmr, tmp_path, monkeypatch):
    from fedmr_flwr.client import app as client

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "fit", interrupt)
    status, _, err = fedmr("run", "run.yaml", *TINY, "engine=in-process", "run-dir=out")
    assert (status, err) == (130, "fedmr: interrupted\n")
    assert '"status": "failed"' in (tmp_path / "out" / "manifest.json").read_text()


def test_help_loads_no_large_library():
    large = "{'torch', 'flwr', 'matplotlib', 'scipy', 'numpy', 'pydantic', 'yaml', 'cryptography'}"
    code = f"import sys, fedmr_flwr.cli; print(*sorted({large} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "draws"),
    [("client.app, fedmr_flwr.algorithms.fedmr", False), ("server.run, fedmr_flwr.launch.engines", True)],
)
def test_run_loads_nothing_that_few_need(part, draws):
    heavy = "{'torch._dynamo', 'torchvision', 'pandas', 'sklearn', 'sqlalchemy', 'matplotlib'}"
    code = f"import sys, fedmr_flwr.{part}; fedmr_flwr.data.datasets.load(fedmr_flwr.config.settings.Data(), None)"
    code += f"; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["matplotlib"] * draws


def test_version(fedmr):
    assert fedmr("--version") == (0, f"fedmr_flwr {fedmr_flwr.__version__}\n", "")


def test_empty_name_of_a_superlink_is_no_run_on_this_machine(fedmr):
    status, out, err = fedmr("run", "run.yaml", *TINY, "--superlink", "")
    assert (status, out, err) == (
        1,
        "",
        "fedmr: error: --superlink needs the name of a SuperLink in Flower's configuration\n",
    )


@pytest.mark.parametrize("override", ["engine=spark", "data.name=digit", "model.name=cn", "partition.name=idd"])
def test_mistyped_names_come_before_the_run_folder(fedmr, override):
    status, out, err = fedmr("run", "run.yaml", *TINY, override)
    assert (status, out) == (1, "")
    assert re.fullmatch(r"fedmr: error: [\w.]+: unknown [\w ]+ '\w+'; choose one of .*\n", err)


def test_bug_in_a_run_is_one_line(fedmr, tmp_path, monkeypatch):
    monkeypatch.setattr("fedmr_flwr.server.rounds.run", None)
    status, out, err = fedmr("run", "run.yaml", *TINY, "--engine", "in-process", "run-dir=out")
    assert (status, "Traceback" in out) == (1, False)
    assert err.startswith("fedmr: error: this is a bug in fedmr_flwr: TypeError: ")
    assert err.endswith(f"; the traceback is in {tmp_path}/out/traceback.txt; please report it\n")
    assert "rounds.run" in (tmp_path / "out" / "traceback.txt").read_text()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert manifest["error"].startswith("this is a bug in fedmr_flwr: TypeError")


def test_bug_without_a_run_is_one_line(fedmr, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("fedmr_flwr.data.datasets.form_of", lambda *_: None)
    status, _, err = fedmr("units", "run.yaml")
    (kept,) = tmp_path.glob("fedmr-*-traceback.txt")
    assert (status, err.count("\n")) == (1, 1)
    assert f"the traceback is in {kept}; please report it" in err


def test_data_are_shown(fedmr, tmp_path):
    from PIL import Image

    for kind in ("cat", "dog"):
        (tmp_path / "pets" / kind).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (9, 8), (number, 0, 255)).save(tmp_path / "pets" / kind / f"{number}.png")
    status, out, err = fedmr("data", "run.yaml", f"data.name=folder:{tmp_path / 'pets'}")
    assert (status, err) == (0, "reading the data\n")
    for words in ("cat", "dog", "images of shape [3, 8, 9]", "examples.png", f"shared copy: {tmp_path}/pets/.pets-"):
        assert words in out
    assert (tmp_path / "examples.png").exists()
    (tmp_path / "a.csv").write_text("x,ward,label\n" + "".join(f"{at},w{at % 3},{at % 2}\n" for at in range(20)))
    status, out, _ = fedmr(
        "data", "run.yaml", f"data.name=csv:{tmp_path / 'a.csv'}", "data.client=ward", "--out=b.png"
    )
    assert status == 0
    for words in ("float values of shape [1]", "labels 'label', clients 'ward'", "features: x", "3 clients of"):
        assert words in out
    assert not (tmp_path / "b.png").exists(), "a table has no pictures"


def test_score_is_json_for_programs(fedmr, no_pictures):
    assert fedmr("run", "run.yaml", *TINY, "engine=in-process", "run-dir=out", "stop.target=0.001")[0] == 0
    status, out, _ = fedmr("score", "out", "--json")
    found = json.loads(out)
    assert (status, found["completed"], found["rounds"], found["rounds-configured"]) == (0, True, 1, 2)
    assert (found["target"], found["rounds-to-target"]) == (0.001, 1)
    assert found["stopped"].startswith("after round 1: test accuracy")
    assert json.loads(fedmr("score", "out", "--json", "--target", "1")[1])["rounds-to-target"] is None
    assert f"{found['test-accuracy']:.4f}" in fedmr("score", "out")[1]
    status, _, error = fedmr("score", "out", "--target", "85")
    assert (status, "--target 85: the accuracy must be from 0 to 1" in error) == (1, True)
