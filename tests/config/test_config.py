import pytest
import yaml

from fedmr_flwr import config
from fedmr_flwr.errors import ConfigError


@pytest.fixture
def load(tmp_path):
    def make(text, *overrides):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return config.load(path, overrides)

    return make


def test_yaml_and_overrides_use_the_same_kebab_case_names(load):
    text = "rounds: 3\ntraining:\n  local-epochs: 2\nstrategy: {name: fedmr, unit: tensor}"
    settings = load(text, "rounds=7", "training.lr=1e-3", "strategy.first-stage-rounds=5", "data.name=mnist")
    assert (settings.rounds, settings.training.local_epochs, settings.training.lr) == (7, 2, 0.001)
    assert settings.strategy.model_extra == {"unit": "tensor", "first-stage-rounds": 5}
    assert settings.data.name == "mnist"


def test_the_resolved_configuration_reads_back_as_the_same(load):
    settings = load("clients: 7\nclients-per-round: 2\nstrategy: {name: fedmr, unit: tensor}", "run-dir=here")
    again = config.parse(yaml.safe_load(config.to_yaml(settings)), "again")
    assert again == settings
    assert settings.run_dir.is_absolute()


@pytest.mark.parametrize("order", [1, -1])
def test_naming_another_strategy_drops_the_options_of_the_files(load, order):
    text = "strategy: {name: fedmr, unit: tensor}"
    overrides = ["strategy.name=fedavg", "strategy.weighting=uniform"][::order]
    assert load(text, *overrides).strategy.model_extra == {"weighting": "uniform"}
    assert load(text, "strategy.name=fedmr").strategy.model_extra == {"unit": "tensor"}
    assert load(text, "strategy.name=fedavg", "strategy.name=fedmr").strategy.model_extra == {"unit": "tensor"}
    assert load("strategy: {unit: tensor}", "strategy.name=fedmr").strategy.model_extra == {"unit": "tensor"}


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("round: 3", [], r"unknown key 'round'; did you mean 'rounds'\?"),
        ("", ["trainig.lr=1"], r"unknown key 'trainig'; "),
        ("", ["training.local-epoch=1"], r"'training.local-epoch'; did you mean 'training.local-epochs'\?"),
        ("", ["rounds=ten"], r"rounds = 'ten': Input should be a valid integer"),
        ("", ["rounds=2.5"], r"rounds = 2.5: "),
        ("", ["clients=5", "clients-per-round=6"], r"clients-per-round is 6 but there are only 5 clients; lower"),
        ("", ["partition.alpha=0"], r"partition.alpha = 0: Input should be greater than 0"),
        ("", ["partition.alpha=-0.1"], r"partition.alpha = -0.1: "),
        ("", ["partition.alpha=.nan"], r"partition.alpha = nan: "),
        ("", ["training.local-epochs=0"], r"training.local-epochs = 0: Input should be greater than or equal to 1"),
        ("", ["device=gpu"], r"device = 'gpu': choose auto, cpu, cuda or cuda:N"),
        ("", ["device=cuda"], r"client-gpus is 0, so Ray hides the GPU.*client-gpus"),
        ("", ["rounds"], r"'rounds' is no override; write key=value"),
        ("", ["rounds=yes"], r"rounds = True: true and false mean nothing here"),
        ("", ["training.lr=true"], r"training.lr = True: "),
        ("", ["data=digits"], r"data = 'digits': it has keys of its own; write data.name=digits"),
        ("rounds: 1\nrounds: 2", [], r"the key 'rounds' stands twice"),
        ("rounds: 1", ["rounds.x=1"], r"'rounds.x=1': 'rounds' is a single value"),
        ("- a list", [], r"must hold 'key: value' lines"),
        ("a: [", [], r"is not valid YAML"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_thing(load, text, overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(text, *overrides)
    assert "\n" not in str(caught.value)


def test_a_folder_that_yaml_would_take_for_a_comment(load):
    assert load("", "run-dir=#1").run_dir.name == "#1"
    assert load("", "run-dir=null").run_dir is None


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the configuration .*nowhere.yaml: No such file"):
        config.load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("path", ["/data/my exp #3/run", "/data/a: b", "/data/{x}", "/data/ü [1]"])
def test_a_path_is_taken_as_it_is_typed(path, tmp_path):
    conf = tmp_path / "conf.yaml"
    conf.write_text("rounds: 1")
    assert str(config.load(conf, [f"run-dir={path}"]).run_dir) == path
    assert str(config.load(conf, [f'run-dir="{path}"']).run_dir) == path, "quotes are YAML's"


def test_only_a_dirichlet_partition_calls_itself_filled_up():
    def division(name):
        return config.parse({"partition": {"name": name, "fill-up": True}}, "test").division()

    assert division("dirichlet").endswith("dirichlet α = 0.5, filled up")
    assert division("quantity").endswith("quantity α = 0.5")
