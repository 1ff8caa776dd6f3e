"""Whole runs on real digits with the in-process engine."""

import hashlib
import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from fedmr_flwr import models
from fedmr_flwr.client import app as client
from fedmr_flwr.client.data_spec import DataSpec
from fedmr_flwr.config.registry import ALGORITHMS
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.errors import (
    ConfigError,
    DeviceError,
    FedmrError,
    PartitionError,
    RunError,
    RunFolderError,
    UnexpectedError,
)
from fedmr_flwr.launch import engines
from fedmr_flwr.models.packing import layout_of
from fedmr_flwr.runs import checkpoint
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server import evaluation, experiment, resuming
from fedmr_flwr.server import run as server_run
from fedmr_flwr.training.evaluation import Score
from tests.support.runs import run

SLOTS = [f"-slot-00{slot}" for slot in range(3)]


def test_run_writes_all_files(settings_of):
    settings = settings_of("evaluate-every=2", "checkpoint-every=2", "strategy.unit=tensor")
    out = run(settings)
    assert sorted(path.name for path in out.path.iterdir()) == [
        ".launching",
        ".lock",
        "checkpoints",
        "clients.png",
        "config.yaml",
        "curves.png",
        "diversity.png",
        "lineage.png",
        "manifest.json",
        "metrics.jsonl",
        "model.safetensors",
        "partition.npz",
    ]
    rows = [json.loads(line) for line in out.metrics.read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert ["test-accuracy" in row for row in rows] == [False, True, True]
    for row in rows:
        assert {"round", "seconds", "train-loss", "replies", "failures", "similarity"} <= set(row)
        assert len(row["spread"]) == len(out.read_manifest()["units"]) == 8
        assert all(value > 0 for value in row["spread"])
        assert row["slots"] == [0, 1, 2]
        assert len(set(row["clients"])) == 3
        assert (row["replies"], row["failures"]) == (3, 0)
        assert 0 < row["similarity"] <= 1
    assert 0 <= rows[-1]["test-accuracy"] <= 1

    manifest = out.read_manifest()
    assert manifest["status"] == "completed"
    assert manifest["strategy"]["unit"] == "tensor"
    assert manifest["model-sha256"] == hashlib.sha256(out.model.read_bytes()).hexdigest()
    resolved = yaml.safe_load((out.path / "config.yaml").read_text())
    assert resolved["training"]["momentum"] == 0.5
    assert resolved["run-dir"] == str(out.path)


def test_saved_model_is_the_mean(toy):
    out = run(toy("checkpoint-every=1"))
    model = models.build("cnn", (1, 8, 8), 10)
    layout = layout_of(model)
    saved = layout.pack(load_file(out.model))
    last = checkpoint.load(max(out.checkpoints.glob("*.json")))
    assert last.round == 3
    np.testing.assert_array_equal(saved.floats, last.model.floats)
    population = np.stack([last.state[f"{slot}.floats"] for slot in range(3)])
    assert population.shape == (3, layout.size)
    assert len({row.tobytes() for row in population}) == 3, "K different models"
    np.testing.assert_allclose(saved.floats, population.astype(np.float64).mean(0), rtol=1e-6)


def test_models_of_chosen_rounds_stay(toy):
    out = run(toy("keep-models=[1,3]", "keep-models-slots=true"))
    names = [f"round-00000{number}{slot}.safetensors" for number in (1, 3) for slot in ("", *SLOTS)]
    assert sorted(path.name for path in out.models.iterdir()) == sorted(names)
    final = load_file(out.model)
    assert all(np.array_equal(value, final[name]) for name, value in load_file(out.kept_model(3)).items())
    slots = [load_file(out.kept_model(1, slot)) for slot in range(3)]
    for name, value in load_file(out.kept_model(1)).items():
        mean = np.mean([slot[name] for slot in slots], axis=0, dtype=np.float64)
        assert np.array_equal(value, mean.astype(value.dtype))


def test_models_of_every_second_round_stay(toy):
    out = run(toy("keep-models=every 2", "strategy.name=fedavg"))
    assert [path.name for path in out.models.iterdir()] == ["round-000002.safetensors"]


def test_slots_are_kept_only_of_chosen_rounds(toy):
    with pytest.raises(ConfigError, match="'keep-models-slots=true': it needs keep-models"):
        toy("keep-models-slots=true")


def test_seed_decides_the_model(toy):
    hashes = [
        run(toy(f"seed={seed}", run=name)).read_manifest()["model-sha256"]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.slow
def test_evaluation_does_not_change_the_model(toy):
    a = run(toy("evaluate-every=1", run="a")).read_manifest()["model-sha256"]
    b = run(toy("evaluate-every=3", "checkpoint-every=1", run="b")).read_manifest()["model-sha256"]
    assert a == b


@pytest.mark.slow
def test_clients_use_the_given_threads(toy, monkeypatch):
    import torch

    fit, threads, orders = client.fit, [], []

    def look(*arguments):
        threads.append(torch.get_num_threads())
        result = fit(*arguments)
        orders.append(arguments[4].integers(2**62))
        return result

    monkeypatch.setattr(client, "fit", look)
    before = torch.get_num_threads()
    run(toy("clients-per-round=6", "client-cpus=1", run="a"))
    assert set(threads) == {1}
    assert torch.get_num_threads() == before
    assert len(set(orders)) == 18, "every client and round has a stream of its own"
    threads.clear()
    run(toy("rounds=1", "client-cpus=2", run="b"))
    assert set(threads) == {2}


def test_client_evaluates_on_its_own_data(toy):
    from flwr.app import Message, RecordDict

    settings = toy("partition.name=iid")
    out = run(settings)
    prepared = experiment.Experiment(settings)
    grid = engines.grid_of(settings)
    spec = DataSpec.of(prepared.dataset)
    config = client.train_config(settings, prepared.layout, spec, out.identifier())
    packed = prepared.layout.pack(load_file(out.model))
    arrays = prepared.codec.encode(Parts([packed.floats], [packed.ints]))
    content = RecordDict({"arrays": arrays, "config": config})
    replies = grid.send_and_receive([Message(content, node, "evaluate") for node in grid.get_node_ids()])
    metrics = [reply.content["metrics"] for reply in replies]
    assert [m["num-examples"] for m in metrics] == [len(part) for part in prepared.parts]
    assert all(0 <= m["accuracy"] <= 1 and m["loss"] > 0 for m in metrics)


def test_strategies_draw_the_same_clients(toy, monkeypatch):
    drawn = {}
    for name in ("fedavg", "fedmr"):
        fit = client.fit
        monkeypatch.setattr(
            client, "fit", lambda *a, fit=fit, name=name: drawn.setdefault(name, []).append(len(a[2])) or fit(*a)
        )
        run(toy(f"strategy.name={name}", run=name))
        monkeypatch.undo()
    assert drawn["fedavg"] == drawn["fedmr"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedmr", "scaffold", "fedexp"])
def test_float16_halves_the_bytes(toy, name):
    whole, half = (run(toy(f"strategy.name={name}", f"wire={wire}", run=wire)) for wire in ("float32", "float16"))
    bytes_up = [out.read_rows()[-1]["bytes-up"]["arrays"] for out in (whole, half)]
    assert 0.5 < bytes_up[1] / bytes_up[0] < 0.51
    assert half.read_rows()[-1]["failures"] == 0
    whole, half = (
        np.concatenate([tensor.ravel() for tensor in load_file(out.model).values()]) for out in (whole, half)
    )
    assert 0 < np.linalg.norm(half - whole) < 0.03 * np.linalg.norm(whole)  # FedExP makes steps, and rounding, longer


@pytest.mark.slow
def test_fedmr_learns_the_digits(toy):
    out = run(
        toy(
            "rounds=40",
            "clients=20",
            "clients-per-round=5",
            "training.local-epochs=5",
            "training.batch-size=20",
            "partition.alpha=0.3",
        )
    )
    best = max(row["test-accuracy"] for row in out.read_rows())
    assert best > 0.85


def test_failed_client_is_in_the_metrics(toy, monkeypatch):
    fit, calls = client.fit, []

    def sometimes(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("out of memory")
        return fit(*arguments)

    monkeypatch.setattr(client, "fit", sometimes)
    rows = run(toy()).read_rows()
    assert [row["failures"] for row in rows] == [0, 1, 0]
    assert [row["replies"] for row in rows] == [3, 2, 3]
    assert rows[1]["failures-by-kind"] == {"client-error": 1}
    assert "failures-by-kind" not in rows[0]
    (failed,) = rows[1]["failed"]
    assert rows[1]["clients"].index(failed["client"]) == 1, "the second to be trained in the round"
    assert failed["kind"] == "client-error"
    assert failed["reason"].startswith("RuntimeError: out of memory ("), "with the place in the code that failed"
    assert 0 <= failed["client"] < 6


def test_population_above_round_size(toy):
    settings = toy("strategy.population=5", "strategy.evaluate-slots=true", "evaluate-every=2", "rounds=4")
    rows = run(settings).read_rows()
    assert all(len(row["slots"]) == 3 == len(row["clients"]) for row in rows)
    assert len({tuple(row["slots"]) for row in rows}) > 1, "other slots in other rounds"
    assert [len(row.get("slot-accuracies", [])) for row in rows] == [0, 5, 0, 5]
    assert all(0 <= accuracy <= 1 for accuracy in rows[1]["slot-accuracies"])


def test_own_data_and_model_train(toy, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    means = rng.uniform(50, 200, (4, 5, 6))

    def examples(count):
        labels = rng.integers(0, 4, count)
        return rng.normal(means[labels], 30).clip(0, 255).astype(np.uint8), labels

    (x_train, y_train), (x_test, y_test) = examples(300), examples(80)
    np.savez(tmp_path / "mine.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    (tmp_path / "my_own.py").write_text("from fedmr_flwr.models.mlp import MLP as Own\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = toy(
        f"data.name=npz:{tmp_path / 'mine.npz'}",
        "model.name=my_own:Own",
        "rounds=4",
        "partition.name=iid",
        "training.batch-size=20",
    )
    assert run(settings).read_rows()[-1]["test-accuracy"] > 0.9


def test_recombination_is_logged_on_request(toy):
    rows = run(toy("strategy.log-recombination=true", "strategy.first-stage-rounds=1")).read_rows()
    assert ["recombination" in row for row in rows] == [False, False, True]
    assert all(sorted(sources) == [0, 1, 2] for sources in rows[2]["recombination"])
    assert len(rows[2]["recombination"]) == 4, "one permutation for each layer"


def poisoned_client(monkeypatch, client_of_all=3):
    """Let one client return its model with a large random step instead of a trained one."""
    train = client.fit

    def fit(model, dataset, examples, training, rng, *more):
        done = train(model, dataset, examples, training, rng, *more)
        if len(examples) == sizes[client_of_all]:
            with torch.no_grad():
                for parameter in model.parameters():
                    step = torch.from_numpy(np.sign(rng.standard_normal(parameter.shape)).astype(np.float32))
                    parameter += 0.5 * step
        return done

    sizes = {}
    monkeypatch.setattr(client, "fit", fit)
    return sizes


@pytest.mark.slow
def test_guard_stops_a_poisoned_client(toy, monkeypatch):
    common = (
        "rounds=8", "clients=10", "clients-per-round=10", "partition.alpha=1.0", "training.local-epochs=2",
        "training.batch-size=20", "evaluate-every=8",
    )  # fmt: skip
    honest = run(toy(*common, run="honest")).read_rows()[-1]
    sizes = poisoned_client(monkeypatch)
    sizes |= dict(enumerate(map(len, experiment.Experiment(toy(*common)).parts)))
    assert list(sizes.values()).count(sizes[3]) == 1, "the client is known by the number of its examples"
    unguarded = run(toy(*common, run="unguarded")).read_rows()[-1]
    guarded = run(toy(*common, "guard=5", run="guarded")).read_rows()
    assert honest["test-accuracy"] > 0.7
    assert unguarded["test-accuracy"] < 0.4
    assert guarded[-1]["test-accuracy"] > honest["test-accuracy"] - 0.1
    assert [row["failures-by-kind"] for row in guarded] == [{"outlier": 1}] * 8
    assert {failed["client"] for row in guarded for failed in row["failed"]} == {3}


def ones_from(monkeypatch, number, first):
    """Let one client return a model of ones from some round on."""

    def ones(self, trained, result):
        if self.environment.number == number and self._round >= first:
            trained = trained._replace(floats=np.ones_like(trained.floats))
        return honest(self, trained, result)

    honest = client.TrainRequest.reply
    monkeypatch.setattr(client.TrainRequest, "reply", ones)


LIAR = ["rounds=8", "clients=4", "clients-per-round=4", "training.local-epochs=2", "training.batch-size=20"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fedmr", "fedavg"])
def test_collapse_names_the_client_that_caused_it(toy, monkeypatch, strategy):
    ones_from(monkeypatch, number=2, first=8)
    *before, last = run(toy(*LIAR, f"strategy.name={strategy}", "partition.name=iid")).read_rows()
    assert not [row for row in before if "collapse" in row]
    assert "largest updates in this round, in multiples of the median: client 2 (" in last["collapse"]
    assert last["failures"] == 0


@pytest.mark.slow
def test_guard_of_a_deployment_stops_a_model_of_ones(toy, monkeypatch):
    ones_from(monkeypatch, number=2, first=8)
    *_, last = run(toy(*LIAR, "partition.name=iid", "guard=10")).read_rows()
    assert [(failed["client"], failed["kind"]) for failed in last["failed"]] == [(2, "outlier")]
    assert "collapse" not in last


def test_diverged_client_is_not_finite(toy):
    with pytest.raises(RunError, match=r"round 1: no client gave a good reply \(client \d: not-finite"):
        run(toy("training.lr=1e30", "rounds=1"))


def test_infinite_global_model_ends_the_run(toy):
    settings = toy("strategy.name=flwr:FedAdam", "strategy.options.eta=1e39", "rounds=3")
    with pytest.raises(
        RunError, match=r"round 1: the global model has NaN or infinite values: training has diverged"
    ):
        run(settings)
    out = RunFolder(settings.run_dir)
    assert out.status == "failed"
    assert [row["problem"] for row in out.read_rows()] == ["the global model has NaN or infinite values"]
    assert not out.model.exists()


def test_nan_score_ends_the_run(toy, monkeypatch):
    scores = iter([Score(1.0, 0.5, 9), Score(float("nan"), 0.1, 9)])
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: next(scores))
    settings = toy("rounds=6", "checkpoint-every=1", "evaluate-every=2")
    with pytest.raises(RunError, match="round 4: the loss of the global model on the test set is nan"):
        run(settings)
    out = RunFolder(settings.run_dir)
    assert [row["round"] for row in out.read_rows() if "problem" in row] == [4]
    found, _ = checkpoint.latest(out.checkpoints)
    assert found.round == 3, "a model that cannot be used is not a checkpoint"


def test_no_replies_end_the_run(toy, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no data\nhere")

    monkeypatch.setattr(client, "fit", broken)
    settings = toy()
    with pytest.raises(RunError, match=r"round 1: .*client \d: client-error: RuntimeError: no data here"):
        run(settings)
    manifest = json.loads((settings.run_dir / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert "no data here" in manifest["error"]
    assert not (settings.run_dir / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("data.name=none", ConfigError),
        ("model.name=none", ConfigError),
        ("partition.name=none", ConfigError),
        ("clients=200", PartitionError),
        ("device=cuda:99", DeviceError),
        ("precision=bf16", DeviceError),
    ],
)
def test_mistakes_write_nothing(toy, override, error):
    settings = toy(override)
    with pytest.raises(error) as caught:
        run(settings)
    assert "\n" not in str(caught.value)
    assert not settings.run_dir.exists()


def test_unknown_engine_is_refused(toy):
    with pytest.raises(ConfigError, match="unknown engine 'spark'; choose one of ray, in-process"):
        engines.grid_of(toy("engine=spark"))


def test_used_folder_is_refused(toy):
    out = run(toy("rounds=1"))
    before = {path.name: path.read_bytes() for path in out.path.iterdir() if path.is_file()}
    with pytest.raises(RunFolderError, match="already contains a run"):
        run(toy("rounds=1", "seed=9"))
    assert before == {path.name: path.read_bytes() for path in out.path.iterdir() if path.is_file()}


def test_client_with_another_model_fails(toy, monkeypatch):
    real = server_run.train_config
    monkeypatch.setattr(
        server_run,
        "train_config",
        lambda *facts: type(real(*facts))({**real(*facts), "layout": "another"}),
    )
    with pytest.raises(RunError, match="this client's model 'cnn' differs from the server's"):
        run(toy())


def test_clients_must_see_the_run_folder(toy, monkeypatch):
    monkeypatch.setattr(resuming.partition_files, "save", lambda parts, path: None)
    with pytest.raises(RunError, match=r"only 0 of the 6 clients .*partition.npz does not exist; all clients"):
        run(toy())


@pytest.mark.slow
def test_local_rules_combine_with_fedmr(toy):
    def hash_and_manifest(*overrides, run_name):
        manifest = run(toy("rounds=2", *overrides, run=run_name)).read_manifest()
        return manifest["model-sha256"], manifest

    plain, _ = hash_and_manifest(run_name="a")
    zero, _ = hash_and_manifest("strategy.local-rule=fedprox", "strategy.mu=0", run_name="b")
    held, manifest = hash_and_manifest("strategy.local-rule=fedprox", "strategy.mu=0.5", run_name="c")
    assert plain == zero != held
    assert manifest["strategy"]["mu"] == 0.5
    assert manifest["strategy"]["local-rule"] == "fedprox"
    assert manifest["title"].startswith("fedmr, local-rule fedprox, unit layer, mu 0.5")


# What travels besides the model; nothing else may.
DOWN = {"fedgen": {"generator"}, "scaffold": {"control"}}
UP = {"fedgen": {"label-counts"}, "scaffold": {"control"}}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_only_declared_vectors_travel(toy, monkeypatch, name):
    """In particular, only FedGen's clients say how many examples of each label they have."""
    fit, received = client.fit, []
    monkeypatch.setattr(client, "fit", lambda *a: (received.append(a[6].keys()), fit(*a))[1])
    rows = run(toy(f"strategy.name={name}", "rounds=2")).read_rows()
    assert rows[1]["bytes-down"].keys() == {"arrays"} | DOWN.get(name, set())
    assert rows[1]["bytes-up"].keys() == {"arrays"} | UP.get(name, set())
    assert received[-1] == DOWN.get(name, set())


@pytest.mark.parametrize(
    ("name", "rule", "words"),
    [
        (
            "fedmr",
            "scaffold",
            "'scaffold' does not work with 'fedmr', because server and clients of 'scaffold' exchange",
        ),
        ("scaffold", "fedprox", "'fedprox' does not work with 'scaffold', because server and clients of 'scaffold'"),
        ("scaffold", "fedgen", r"'fedgen' does not work with 'scaffold'.*generator, label-counts"),
        (
            "flwr:FedAvg",
            "fedgen",
            "'fedgen' does not work with 'flwr:FedAvg', because server and clients of 'fedgen'",
        ),
    ],
)
def test_rule_needing_its_server_is_refused(toy, name, rule, words):
    with pytest.raises(ConfigError, match=words):
        toy(f"strategy.name={name}", f"strategy.local-rule={rule}")


@pytest.mark.slow
def test_moon_serves_under_any_strategy(toy):
    plain, moon = (
        run(toy("rounds=4", "clients=3", *options, run=f"run{len(options)}")).read_rows()
        for options in ((), ("strategy.local-rule=moon", "strategy.mu=1"))
    )
    assert plain[0]["test-loss"] == moon[0]["test-loss"], "nobody has an earlier model in the first round"
    assert plain[3]["test-loss"] != moon[3]["test-loss"]
    assert len(run(toy("strategy.name=flwr:FedAvg", "strategy.local-rule=moon", run="flower")).read_rows()) == 3


@pytest.mark.slow
def test_fedgen_without_terms_is_fedavg(toy):
    options = ("strategy.name=fedgen", "strategy.alpha=0", "strategy.beta=0")
    fedgen, fedavg = run(toy(*options, run="a")), run(toy("strategy.name=fedavg", run="b"))
    assert fedgen.read_manifest()["model-sha256"] == fedavg.read_manifest()["model-sha256"]


def test_clients_must_have_the_same_data(toy, monkeypatch):
    monkeypatch.setattr(experiment.Experiment, "digest", "another")
    with pytest.raises(RunError, match="6 refused, the first one: DataError: this client's data differ"):
        run(toy())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_algorithms_learn_the_digits(toy, name):
    # Five times the last update, as published, is too far after the long steps of a few rounds on so few examples.
    gentle = ["strategy.radius=0.5"] if name == "fedmut" else []
    how = ["rounds=6", "training.local-epochs=2", "training.batch-size=20"]
    rows = run(toy(*how, f"strategy.name={name}", *gentle)).read_rows()
    assert rows[-1]["test-accuracy"] > 0.5
    assert rows[-1]["test-accuracy"] > rows[0]["test-accuracy"]


@pytest.fixture
def shakespeare(tmp_path):
    """Settings for a run on LEAF's Shakespeare: three roles, each of whom repeats a letter of its own."""
    folder = tmp_path / "data" / "shakespeare"
    users = {role: {"x": [letter * 80] * 20, "y": [letter] * 20} for role, letter in zip("XYZ", "abc", strict=True)}
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
        content = {"users": [*users], "num_samples": [20] * 3, "user_data": users}
        (folder / part / "all_data.json").write_text(json.dumps(content))
    return [
        f"data-dir={tmp_path / 'data'}", "data.name=shakespeare", "model.name=charlstm", "partition.name=natural",
        "clients=3", "clients-per-round=3", "rounds=4", "training.lr=0.5",
        "training.batch-size=20",
    ]  # fmt: skip


@pytest.mark.slow
def test_learns_texts_by_role(toy, shakespeare):
    out = run(toy(*shakespeare, "strategy.name=fedavg"))
    losses = [row["test-loss"] for row in out.read_rows()]
    assert losses[-1] < losses[0] < np.log(80), "better than guessing, and ever better"
    assert out.read_manifest()["title"].startswith("fedavg · shakespeare, 3 clients, natural")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training.augment=true", "'training.augment=true': data.name=shakespeare has no images; leave it out"),
        ("data.normalisation=none", "'data.normalisation=none': data.name=shakespeare has no images"),
        ("model.name=cnn", "'cnn' is not defined for images of shape"),
        ("clients=4", "has 3 natural clients, not 4; set clients=3"),
    ],
)
def test_image_settings_are_refused_for_text(toy, shakespeare, change, words):
    with pytest.raises(FedmrError, match=words):
        run(toy(*shakespeare, change))


@pytest.mark.slow
def test_normalisation_changes_the_model(toy):
    a, b, c = (
        run(toy("rounds=1", f"data.normalisation={how}", run=how)) for how in ("published", "measured", "none")
    )
    assert len({out.read_manifest()["model-sha256"] for out in (a, b, c)}) == 3
    assert c.read_manifest()["identity"]["data"]["normalisation"] == "none"


@pytest.mark.slow
def test_augmentation_changes_training(toy):
    hashes = [
        run(toy("rounds=1", f"training.augment={how}", run=f"{at}")).read_manifest()["model-sha256"]
        for at, how in enumerate(("true", "true", "false"))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory")]
)
def test_server_out_of_memory_is_one_line(toy, monkeypatch, error):
    def starving(*args):
        raise error

    monkeypatch.setattr(evaluation, "evaluate", starving)
    with pytest.raises(
        DeviceError, match=r"device cpu: out of memory while averaging or scoring models; set device=cpu"
    ):
        run(toy())


def test_a_mistake_of_ours_keeps_its_traceback_in_the_run_folder(toy, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", None)
    settings = toy()
    with pytest.raises(UnexpectedError, match="TypeError: 'NoneType' object is not callable"):
        run(settings)
    assert "server/evaluation.py" in (settings.run_dir / "traceback.txt").read_text()


@pytest.mark.parametrize(("rounds", "said"), [(3, True), (4, False)])
def test_a_first_stage_of_all_rounds_is_said(toy, rounds, said):
    notices = experiment.Experiment(toy(f"rounds={rounds}", "strategy.first-stage-rounds=3")).notices
    assert any("all 3 rounds are averaged, and nothing is recombined" in line for line in notices) == said


@pytest.mark.parametrize(("choice", "tested"), [("participants", 4), ("all", 6)])
def test_natural_runs_test_on_participants(toy, tmp_path, choice, tested):
    images = np.random.default_rng(0).integers(0, 256, (36, 8, 8), dtype=np.uint8)
    train = {"x_train": images[:30], "y_train": np.arange(30) % 10, "owners": np.arange(30) // 10}
    test = {"x_test": images[30:], "y_test": np.arange(6), "owners_test": np.arange(6) // 2}
    np.savez(tmp_path / "written.npz", **train, **test)
    data = f"data.name=npz:{tmp_path / 'written.npz'}"
    settings = toy(data, "partition.name=natural", f"partition.test={choice}", "clients=2", "clients-per-round=2")
    prepared = experiment.Experiment(settings)
    assert len(prepared.test) == tested
    assert prepared.chance == 1 / tested  # each of them has another label
    row = run(settings).read_rows()[-1]
    assert row["test-accuracy"] * tested == pytest.approx(round(row["test-accuracy"] * tested))
