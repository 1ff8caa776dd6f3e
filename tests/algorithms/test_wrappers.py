"""Wrappers of Flower's that are wrong around K individual models are refused, and those that are right are not."""

from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common import ndarrays_to_parameters
from flwr.server import strategy as old
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.serverapp import strategy as new

from fedmr_flwr import FedAvg, FedMR
from fedmr_flwr.algorithms import classic
from fedmr_flwr.algorithms.fedexp import FedExP
from fedmr_flwr.algorithms.fedmut import FedMut
from fedmr_flwr.algorithms.flower import flower_strategy
from fedmr_flwr.algorithms.scaffold import Scaffold
from fedmr_flwr.errors import ConfigError

START = ArrayRecord({"w": Array(np.zeros(3, np.float32))})


@pytest.fixture
def grid(grid_of, answer):
    return grid_of(lambda message, client: answer(message.content["arrays"]), clients=4)


def wrapped(kind, strategy):
    more = {} if "Adaptive" in kind else {"clipping_norm": 1.0}
    return getattr(new, kind)(strategy, noise_multiplier=0.1, num_sampled_clients=3, **more)


@pytest.mark.parametrize("own", [FedMR, FedMut, FedExP, Scaffold])
@pytest.mark.parametrize("kind", sorted(name for name in new.__all__ if name.startswith("Differential")))
def test_clipping_wrappers_are_refused(kind, own, grid):
    strategy = own(clients_per_round=3)
    with pytest.raises(ConfigError, match=f"^{kind} cannot be used with {own.__name__}: it clips .*privacy.local-dp"):
        list(wrapped(kind, strategy).configure_train(1, START, ConfigRecord(), grid))
    assert len(strategy.configure_train(1, START, ConfigRecord(), grid)) == 3, "by itself it works"


def test_wrapped_wrappers_are_refused(grid):
    class Plain(new.FedAvg):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def configure_train(self, *arguments):
            return self.inner.configure_train(*arguments)

    kind = "DifferentialPrivacyServerSideFixedClipping"
    with pytest.raises(ConfigError, match=f"^{kind} cannot be used with FedMR"):
        list(wrapped(kind, Plain(FedMR(clients_per_round=3))).configure_train(1, START, ConfigRecord(), grid))


def test_subclasses_of_wrappers_are_refused(grid):
    class Mine(new.DifferentialPrivacyServerSideFixedClipping):
        pass

    wrapper = Mine(FedMR(clients_per_round=3), noise_multiplier=0.1, clipping_norm=1.0, num_sampled_clients=3)
    with pytest.raises(ConfigError, match="^Mine cannot be used with FedMR"):
        list(wrapper.configure_train(1, START, ConfigRecord(), grid))


def test_wrappers_may_wrap_fedavg(grid):
    kind = "DifferentialPrivacyServerSideFixedClipping"
    assert len(list(wrapped(kind, FedAvg(clients_per_round=3)).configure_train(1, START, ConfigRecord(), grid))) == 3


@pytest.mark.parametrize(
    "kind", ["DifferentialPrivacyServerSideFixedClipping", "DifferentialPrivacyServerSideAdaptiveClipping"]
)
def test_wrapped_fedavg_runs_to_its_end(kind, grid_of, answer):
    def reply(message, client):
        old = message.content["arrays"]["w"].numpy()
        return answer(ArrayRecord({"w": Array(old + np.float32(client + 1))}), loss=1.0)

    strategy = wrapped(kind, FedAvg(clients_per_round=3, fraction_evaluate=0.0))
    result = strategy.start(grid_of(reply, clients=4), START, num_rounds=2)
    assert [metrics["loss"] for metrics in result.train_metrics_clientapp.values()] == [1, 1]
    assert list(result.arrays) == ["w"]


def test_classic_wrappers_are_refused():
    strategy = classic.FedMR(clients_per_round=1, keys=["w"])
    parameters = ndarrays_to_parameters([np.zeros(3, np.float32)])
    clipping = old.DifferentialPrivacyServerSideFixedClipping(strategy, 1.0, 1.0, 1)
    with pytest.raises(ConfigError, match="^DifferentialPrivacyServerSideFixedClipping cannot be used with FedMR"):
        clipping.configure_fit(1, parameters, None)


def test_secure_aggregation_is_refused():
    strategy = classic.FedMR(clients_per_round=1, keys=["w"])
    state = RecordDict(
        {MAIN_CONFIGS_RECORD: ConfigRecord({Key.CURRENT_ROUND: 1}), MAIN_PARAMS_RECORD: START}
    )  # of Flower's workflows
    context = SimpleNamespace(state=state, strategy=strategy, client_manager=None)
    with pytest.raises(
        ConfigError, match="^SecAggPlusWorkflow cannot be used with FedMR: it gives the server only a sum"
    ):
        SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2).setup_stage(None, context, None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("DifferentialPrivacyServerSideFixedClipping", "wraps another strategy, and clips .*privacy.local-dp"),
        ("SecAggPlus", "wraps another strategy, and gives the server only a sum"),
    ],
)
def test_named_wrappers_are_refused(name, words):
    with pytest.raises(ConfigError, match=f"'flwr:{name}' {words}"):
        flower_strategy(f"flwr:{name}")
