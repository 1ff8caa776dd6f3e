"""From YAML and overrides to settings, and back."""

import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmr_flwr.algorithms.fedavg import FedAvgOptions
from fedmr_flwr.algorithms.fedmr import FedMROptions
from fedmr_flwr.algorithms.flower import FlowerOptions
from fedmr_flwr.config import loading
from fedmr_flwr.config.loading import to_yaml
from fedmr_flwr.config.training import Training
from fedmr_flwr.config.yaml_text import read_yaml, write_yaml
from fedmr_flwr.errors import ConfigError


@pytest.fixture
def load(tmp_path):
    def make(text, *overrides):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return loading.load(path, overrides)

    return make


def test_overrides_use_the_yaml_names(load):
    text = "rounds: 3\ntraining:\n  local-epochs: 2\nstrategy: {name: fedmr, unit: tensor}"
    settings = load(text, "rounds=7", "training.lr=1e-3", "strategy.first-stage-rounds=5", "data.name=mnist")
    assert (settings.rounds, settings.training.local_epochs, settings.training.lr) == (7, 2, 0.001)
    assert settings.strategy.options == FedMROptions(unit="tensor", first_stage_rounds=5)
    assert settings.data.name == "mnist"


@pytest.mark.parametrize("order", [1, -1])
def test_another_strategy_drops_options(load, order):
    text = "strategy: {name: fedmr, unit: tensor}"
    overrides = ["strategy.name=fedavg", "strategy.weighting=uniform"][::order]
    assert load(text, *overrides).strategy.options == FedAvgOptions(weighting="uniform")


def test_overrides_replace_another_choice(load):
    text = (
        "training: {optimizer: adam, betas: [0.5, 0.9], schedule: step, decay: 0.1, decay-rounds: 5, local-epochs: 2}"
    )
    replaced = load(text, "training.local-steps=7", "training.optimizer=sgd", "training.schedule=constant").training
    assert (replaced.local_steps, replaced.local_epochs) == (7, None)
    assert replaced == Training(local_steps=7)
    kept = load(text, "training.lr=0.1").training
    assert (kept.betas, kept.decay, kept.local_epochs) == ((0.5, 0.9), 0.1, 2)
    with pytest.raises(ConfigError, match=r"training.decay=0.5.*=constant does not use it"):
        load(text, "training.schedule=constant", "training.decay=0.5")


def test_same_strategy_keeps_options(load):
    tensor = FedMROptions(unit="tensor")
    text = "strategy: {name: fedmr, unit: tensor}"
    assert load(text, "strategy.name=fedmr").strategy.options == tensor
    assert load(text, "strategy.name=fedavg", "strategy.name=fedmr").strategy.options == tensor
    assert load("strategy: {unit: tensor}", "strategy.name=fedmr").strategy.options == tensor


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("round: 3", [], r"run.yaml: unknown key 'round'; did you mean 'rounds'\?"),
        ("clients_per_round: 3", [], r"unknown key 'clients_per_round'; did you mean 'clients-per-round'\?"),
        ("", ["trainig.lr=1"], r"^'trainig.lr=1': unknown key 'trainig'; "),
        ("", ["training.local-epoch=1"], r"^'training.local-epoch=1': .* did you mean 'training.local-epochs'\?"),
        ("rounds: ten", [], r"run.yaml: rounds = 'ten': Input should be a valid integer"),
        ("", ["rounds=ten"], r"^'rounds=ten': Input should be a valid integer"),
        ("rounds: ten", ["seed=x"], r"run.yaml: rounds = 'ten': .*; 'seed=x': "),
        ("", ["rounds=2.5"], r"rounds=2.5"),
        ("", ["clients=5", "clients-per-round=6"], r"clients-per-round is 6 but there are only 5 clients; lower"),
        ("partition: {alpha: 0}", [], r"partition.alpha = 0: Input should be greater than 0"),
        ("", ["training={lr: 0}"], r"^'training={lr: 0}': training.lr = 0: Input should be greater than 0"),
        ("", ["partition.alpha=.nan"], r"partition.alpha=.nan"),
        ("", ["device=gpu"], r"^'device=gpu': choose auto, cpu, cuda or cuda:N"),
        ("", ["device=cuda"], r"ray.client-gpus is 0, so Ray hides the GPU.*ray.client-gpus"),
        (
            "",
            ["engine=deployment", "deployment.min-clients=101"],
            r"deployment.min-clients is 101 but there are only 100 clients",
        ),
        ("", ["keep-models=every"], r"^'keep-models=every': write a list of rounds, such as \[10, 30\], or every N$"),
        ("", ["privacy.local-dp.epsilon=1"], r"run.yaml: privacy.local-dp.clipping-norm is missing; "),
        ("", ["rounds"], r"'rounds' is not an override; write key=value"),
        ("", ["training..lr=1"], r"'training..lr=1' is not an override; write key=value"),
        ("", ["rounds = 3"], r"'rounds = 3': unknown key 'rounds'; did you mean 'rounds'\?"),
        ("rounds: true", [], r"rounds = True: must not be true or false"),
        ("", ["training.lr=true"], r"^'training.lr=true': must not be true or false"),
        ("", ["training=1"], r"^'training=1': training is a section; set one of its keys, such as training.lr"),
        ("seed: 1\nrounds: 1\nrounds: 2", [], r"run.yaml is not valid YAML: line 3: duplicate key 'rounds'"),
        ("rounds: 1", ["rounds.x=1"], r"'rounds.x=1': 'rounds' is a single value"),
        ("- a list", [], r"must contain 'key: value' lines"),
        ("a: [", [], r"is not valid YAML"),
        (
            "rounds: " + "9" * 5000,
            [],
            r"is not valid YAML: line 1: the number 9{21}... exceeds 64 bits$",
        ),
        ("rounds: " + "[" * 2000, [], r"is not valid YAML: line 1: it is nested too deeply"),
        ("rounds: !!bool x", [], r"is not valid YAML"),
        ("rounds: !!timestamp x", [], r"is not valid YAML: line 1: the tag .* is not supported"),
    ],
)
def test_mistakes_name_their_source(load, text, overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(text, *overrides)
    assert "\n" not in str(caught.value)


def test_errors_shorten_long_values(load):
    with pytest.raises(ConfigError) as caught:
        load(f"rounds: {'x' * 10_000}")
    assert len(str(caught.value)) < 500


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no configuration .*nowhere.yaml; give the path of a file"):
        loading.load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-3", 1e-3), ("-2E+4", -2e4), ("1.5e3", 1.5e3), (".5", 0.5), ("1.", 1.0), (".inf", float("inf"))),
        *(("7", 7), ("-7", -7), ("0x1f", 31), ("true", True), ("~", None), ("", None)),
        *((text, text) for text in ("yes", "12:30", "010", "1_0", "2026-11-26", "e3", "1e", "0x", "-e", "<<")),
    ],
)
def test_yaml_12_tells_numbers_from_text(text, value):
    found = read_yaml(f"key: {text}")["key"]
    assert (found, type(found)) == (value, type(value))


NUMBERS = st.integers(-(2**64) + 1, 2**64 - 1)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.recursive(st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False) | st.text(), st.lists))
def test_values_survive_yaml(value):
    assert read_yaml(write_yaml({"key": value})) == {"key": value}


@pytest.mark.parametrize("text", ["1e-3", "5E4", "yes", "010", "12:30", "null", "2026-11-26", ".5", "0x1f"])
def test_number_like_text_stays_text(text):
    assert read_yaml(write_yaml({"key": text})) == {"key": text}


def test_options_take_scientific_notation(load):
    overrides = load("", "strategy.name=flwr:FedAdam", "strategy.options.eta=1e-2", "strategy.options.tau=1E-9")
    file = load("strategy: {name: 'flwr:FedAdam', options: {eta: 1e-2, tau: 1E-9}}")
    assert overrides.strategy.options == file.strategy.options == FlowerOptions(options={"eta": 0.01, "tau": 1e-9})


def test_path_may_look_like_a_comment(load):
    assert load("", "run-dir=#1").run_dir.name == "#1"
    assert load("", "run-dir=null").run_dir is None


@pytest.mark.parametrize("path", ["/data/my exp #3/run", "/data/a: b", "/data/{x}", "/data/ü [1]"])
def test_paths_are_taken_literally(path, load):
    assert str(load("", f"run-dir={path}").run_dir) == path
    assert str(load("", f'run-dir="{path}"').run_dir) == path, "quotes are YAML's"


def test_path_that_is_a_number_for_yaml_is_named(load):
    with pytest.raises(ConfigError, match="'run-dir=2024': Input should be a path; .* in quotes"):
        load("", "run-dir=2024")
    assert load("", "run-dir='2024'").run_dir.name == "2024"


MISTAKES = """
import sys
from fedmr_flwr.config.loading import parse
from fedmr_flwr.errors import ConfigError
for values in {"rounds": "x", "strategy": {"name": "nothing"}}, {"clients": 1}:
    try:
        parse(values, "x")
    except ConfigError:
        print(*sorted({"torch", "flwr", "numpy"} & set(sys.modules)))
"""


def test_mistakes_are_found_without_pytorch():
    done = subprocess.run([sys.executable, "-c", MISTAKES], capture_output=True, text=True, check=True)
    assert done.stdout == "\n\n"


def test_runs_of_one_second_have_their_own_folders(tmp_path, monkeypatch, load):
    monkeypatch.chdir(tmp_path)
    settings = load("")
    folders = {loading.resolve_paths(settings).run_dir for _ in range(20)}
    assert len(folders) == 20
    assert {folder.parent for folder in folders} == {tmp_path / "runs"}


@pytest.mark.parametrize("option", ["run-dir", "data-dir", "data.name", "partition.name", None])
def test_paths_of_other_bytes_are_refused_in_one_line(option, tmp_path, monkeypatch, load):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    kind = {"data.name": "npz:", "partition.name": "file:"}.get(option, "")
    if option is None:
        monkeypatch.chdir(folder)  # below which the run's folder would be
    with pytest.raises(ConfigError, match="^a path or name of the configuration is not UTF-8"):
        loading.resolve_paths(load("", *([f"{option}={kind}{folder}"] if option else [])))


@pytest.mark.parametrize(
    ("data", "strategy", "name"),
    [
        ("digits", "fedmr", "digits-fedmr-seed0"),
        ("npz:/data/a b/mine.npz", "fedmr", "mine.npz-fedmr-seed0"),
        ("npz:../../data/mine.npz", "flwr:FedAdam", "mine.npz-flwr-FedAdam-seed0"),
        ("my_data:load", "fedmr", "my_data-load-fedmr-seed0"),
    ],
)
def test_run_folder_is_named_plainly(tmp_path, monkeypatch, load, data, strategy, name):
    monkeypatch.chdir(tmp_path)
    folder = loading.resolve_paths(load("", f"data.name={data}", f"strategy.name={strategy}")).run_dir
    assert folder.parent == tmp_path / "runs"
    assert re.fullmatch(rf"\d{{8}}-\d{{6}}-{re.escape(name)}-[0-9a-f]{{4}}", folder.name)


@pytest.mark.parametrize(
    ("overrides", "guard"),
    [
        ([], None),
        (["engine=deployment"], 10.0),
        (["engine=deployment", "guard=3"], 3.0),
        (["engine=deployment", "guard=0"], None),
        (["engine=deployment", "guard=off"], None),
        (["guard=5"], 5.0),
    ],
)
def test_guard_is_on_in_a_deployment(load, overrides, guard):
    assert load("rounds: 2", *overrides).guard_factor == guard


@pytest.mark.parametrize("value", ["1", "0.5", "-3"])
def test_guard_below_the_median_is_refused(load, value):
    with pytest.raises(ConfigError, match="guard = .*: it must be greater than 1, or off"):
        load(f"guard: {value}")


def test_guard_of_another_word_is_refused(load):
    with pytest.raises(ConfigError, match="guard = 'on': it must be a number greater than 1, or off"):
        load("guard: on")


# A key, a value, settings with which it has an effect, and others with which it has none.
VOID = [
    ("data.train-examples", 100, {"partition.name": "iid"}, {"partition.name": "nodes"}),
    ("data.validation", 0.2, {"partition.name": "iid"}, {"partition.name": "nodes"}),
    ("partition.skew", "blur", {"partition.name": "iid"}, {"partition.name": "nodes"}),
    ("evaluation.train", 2, {"partition.name": "iid"}, {"partition.name": "nodes"}),
    ("ray.client-gpus", 0.5, {}, {"engine": "in-process"}),
    ("ray.address", "auto", {}, {"engine": "deployment"}),
    ("deployment.min-clients", 50, {"engine": "deployment"}, {"engine": "ray", "clients": 20}),
    ("deployment.join-timeout", 9, {"engine": "deployment"}, {"engine": "gpu"}),
    ("deployment.superlink", "x", {"engine": "deployment"}, {"engine": "in-process"}),
    ("round-timeout", 9, {}, {"engine": "in-process"}),
    ("keep-models-slots", True, {"keep-models": [3]}, {"keep-models": []}),
    ("keep-models-slots", True, {"keep-models": [3]}, {"keep-models": [3], "strategy.name": "fedavg"}),
    ("evaluation.fine-tune", 3, {"evaluation.clients": "end"}, {"evaluation.clients": "never"}),
    ("data.label", "y", {"data.name": "csv:x"}, {"data.name": "npz:x"}),
    ("data.client", "y", {"data.name": "hf:x"}, {"data.name": "digits"}),
    ("data.image", "y", {"data.name": "hf:x"}, {"data.name": "csv:x"}),
    ("data.text", "y", {"data.name": "hf:x"}, {"data.name": "folder:x"}),
    ("data.size", 8, {"data.name": "folder:x"}, {"data.name": "mnist"}),
    ("data.normalisation", "none", {"data.name": "mnist"}, {"data.name": "breast-cancer"}),
    ("partition.alpha", 0.1, {"partition.name": "dirichlet"}, {"partition.name": "iid"}),
    ("partition.alpha", 0.25, {"partition.name": "quantity"}, {"partition.name": "shards"}),
    ("partition.alpha", 2, {"partition.name": "dirichlet"}, {"partition.name": "file:x"}),
    ("partition.shards-per-client", 3, {"partition.name": "shards"}, {"partition.name": "natural"}),
    ("partition.fill-up", True, {"partition.name": "dirichlet"}, {"partition.name": "quantity"}),
    ("partition.skew", "blur", {"data.name": "mnist"}, {"data.name": "csv:x"}),
    ("partition.skew-strength", 0.1, {"partition.skew": "blur"}, {"partition.skew": None}),
    ("partition.test", "all", {"data.name": "femnist"}, {"data.name": "cifar10"}),
    ("training.augment", True, {"data.name": "mnist"}, {"data.name": "shakespeare"}),
    ("training.momentum", 0.9, {}, {"training.optimizer": "adam"}),
    ("training.nesterov", True, {}, {"training.optimizer": "adam"}),
    ("training.nesterov", True, {}, {"training.momentum": 0}),
    ("training.betas", [0.5, 0.9], {"training.optimizer": "adam"}, {"training.optimizer": "sgd"}),
    ("training.final-lr", 0.001, {"training.schedule": "cosine"}, {"training.schedule": "inverse"}),
    ("model.features", "body", {"strategy.name": "moon"}, {"strategy.name": "fedgen"}),
    ("model.features", "body", {"strategy.local-rule": "moon"}, {"strategy.local-rule": "fedprox"}),
    ("strategy.compare", "all", {"strategy.name": "fedcross"}, {"strategy.collaborator": "in-order"}),
    ("strategy.collaborator", "highest", {"strategy.name": "fedcross"}, {"strategy.alpha": 1}),
    ("strategy.temperature", 1, {"strategy.name": "moon"}, {"strategy.mu": 0}),
    ("strategy.eta", 0.1, {"strategy.name": "fedasam"}, {"strategy.rho": 0}),
    ("strategy.acceleration", 0.1, {"strategy.name": "fedmut"}, {"strategy.radius": 0}),
    ("strategy.acceleration-rounds", 9, {"strategy.name": "fedmut"}, {"strategy.acceleration": 0}),
]


def as_file(settings):
    """The settings by dotted key as YAML."""
    values = {}
    for key, value in settings.items():
        section, _, last = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[last] = value
    return write_yaml(values)


def as_overrides(settings):
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def value_of(settings, key):
    values = read_yaml(loading.to_yaml(settings))
    for part in key.split("."):
        values = values.get(part, {})
    return values or None


@pytest.mark.parametrize(("key", "value", "good", "bad"), VOID, ids=lambda value: None)
def test_option_has_an_effect_or_is_named(load, key, value, good, bad):
    assert value_of(load(as_file({**good, key: value})), key) == value
    void = {**good, **bad}
    with pytest.raises(ConfigError, match=rf"run.yaml: {key}: "):
        load(as_file({**void, key: value}))
    typed = rf"^'{key}={re.escape(json.dumps(value))}': "
    for text, overrides in (("", {**void, key: value}), (as_file(void), {key: value})):
        with pytest.raises(ConfigError, match=typed):
            load(text, *as_overrides(overrides))
    # What a base file sets for another choice than the one that is typed.
    settings = load(as_file({**good, key: value}), *as_overrides(bad))
    assert value_of(settings, key) is None, "only what has an effect is written"
    assert settings == load("", *as_overrides(void))
    assert load(loading.to_yaml(settings)) == settings


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("keep-models", [3, 200], "rounds is 100, so round 200 never comes"),
        ("keep-models", "every 101", "rounds is 100, so round 101 never comes"),
        ("stop.patience", 99, "rounds is 100, so there are too few evaluations to end before"),
        ("training.warmup-rounds", 100, "rounds is 100, so training.lr is never reached"),
        ("training", {"schedule": "step", "decay": 0.1, "decay-rounds": 100}, "so the learning rate never falls"),
    ],
)
def test_what_first_matters_after_the_last_round_is_named(load, tmp_path, key, value, message):
    with pytest.raises(ConfigError, match=message):
        load(as_file({key: value}))
    with pytest.raises(ConfigError, match=message):
        load("", *as_overrides({key: value}))
    # In a short trial of a long run it stays: the trial may be resumed, and has the first rates of the long run.
    trial = load(as_file({"rounds": 300, key: value}), "rounds=50")
    assert trial == load(as_file({"rounds": 300, key: value})).model_copy(update={"rounds": 50})
    # Its folder can be read, and continued to any round.
    (tmp_path / "config.yaml").write_text(to_yaml(trial))
    assert loading.load_recorded(tmp_path / "config.yaml") == trial
    longer = loading.load_recorded(tmp_path / "config.yaml", ["rounds=60"])
    assert longer == trial.model_copy(update={"rounds": 60})


def test_a_run_of_a_comparison_may_void_what_is_given_for_all(load, tmp_path):
    load("")
    void = ["strategy.name=fedmr", "partition.name=iid"]
    settings = loading.load(tmp_path / "run.yaml", ["model.features=body", "partition.alpha=0.1"], void)
    assert settings == load("", *void)
    with pytest.raises(ConfigError, match="'partition.alpha=0.1': partition.name=iid does not use it"):
        loading.load(tmp_path / "run.yaml", [], ["partition.alpha=0.1", *void])


def test_a_section_that_is_typed_as_one_is_one_source(load):
    text = "partition: {name: dirichlet, alpha: 0.1}"
    assert load(text, "partition={name: iid}").partition.name == "iid"
    with pytest.raises(ConfigError, match=r"^'partition=\{name: iid, alpha: 2\}': partition.alpha: "):
        load(text, "partition={name: iid, alpha: 2}")


def test_all_keys_with_their_defaults_are_read(load):
    text = (
        "engine: in-process\nround-timeout: 3600\npartition: {alpha: 0.5}\ntraining: {optimizer: adam, momentum: 0.5}"
    )
    assert load(text) == load("engine: in-process\ntraining: {optimizer: adam}"), "as earlier versions wrote them"
    with pytest.raises(ConfigError, match="'partition.alpha=0.5': partition.name=iid does not use it"):
        load(text, "partition.alpha=0.5")


@pytest.mark.parametrize("name", ["iid", "shards", "quantity", "dirichlet"])
def test_written_configuration_shows_what_has_effect(load, name):
    settings = load("", f"partition.name={name}")
    text = loading.to_yaml(settings)
    assert ("alpha:" in text) == (name in ("quantity", "dirichlet"))
    assert ("shards-per-client:" in text) == (name == "shards")
    assert load(text) == settings
