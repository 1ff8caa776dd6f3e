"""What cannot be sealed is refused when the configuration is read."""

import pytest

from fedmr_flwr.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("strategy.name=fedavg", "strategy.name=fedavg computes with models, .*; choose fedmr or indep"),
        ("strategy.name=fedcross", "strategy.name=fedcross computes with models"),
        ("strategy.name=flwr:FedAdam", "strategy.name=flwr:FedAdam computes with models"),
        ("strategy.name=fedmr_flwr.algorithms.fedmr:FedMR", "computes with models"),
        ("engine=gpu", "with engine=gpu nothing leaves the GPU"),
        ("guard=5", "which guard needs"),
        ("strategy.first-stage-rounds=2", "which strategy.first-stage-rounds needs"),
        ("strategy.buffers=average", "which strategy.buffers needs"),
        ("strategy.evaluate-slots=true", "which strategy.evaluate-slots needs"),
        ("keep-models=[1]", "which keep-models needs"),
        ("evaluation.train=end", "which evaluation.train needs"),
        ("evaluation.classes=1", "which evaluation.classes needs"),
    ],
)
def test_what_reads_models_is_refused(settings_of, override, problem):
    settings_of(override)
    with pytest.raises(ConfigError, match=f"privacy.sealed: .*{problem}"):
        settings_of(override, "privacy.sealed=true")


def test_guard_is_off_in_a_sealed_deployment(settings_of):
    deployed = ["engine=deployment", "deployment.superlink=x"]
    assert settings_of(*deployed).guard_factor == 10
    assert settings_of(*deployed, "privacy.sealed=true").guard_factor is None
