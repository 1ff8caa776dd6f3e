"""Learning rates by round, and how much a client does."""

from collections import Counter

import pytest
import torch

from fedmr_flwr.config.loading import parse
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.config.training import Training
from fedmr_flwr.training.work import learning_rate, work_of

SGD, schedulers = torch.optim.SGD, torch.optim.lr_scheduler
# Ours, and PyTorch's scheduler of the same name.
SCHEDULES = {
    "step": ({"decay": 0.5, "decay_rounds": 3}, lambda o: schedulers.StepLR(o, 3, 0.5)),
    "exponential": ({"decay": 0.9}, lambda o: schedulers.ExponentialLR(o, 0.9)),
    "cosine": ({"decay_rounds": 12, "final_lr": 0.01}, lambda o: schedulers.CosineAnnealingLR(o, 12, 0.01)),
    "inverse": ({}, lambda o: schedulers.LambdaLR(o, lambda epoch: 1 / (1 + epoch))),
    "constant": ({}, lambda o: schedulers.ConstantLR(o, 1.0)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_equal_pytorchs(name):
    options, of = SCHEDULES[name]
    training = Training(lr=0.1, schedule=name, **options)
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    scheduler = of(optimizer)
    for number in range(1, 13):
        assert learning_rate(training, number) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9), number
        optimizer.step()
        scheduler.step()


def test_rates_by_hand():
    inverse = Training(lr=0.8, schedule="inverse", decay_rounds=3)
    assert [learning_rate(inverse, number) for number in (1, 4, 10)] == pytest.approx([0.8, 0.4, 0.2])
    warm = Training(lr=1.0, schedule="inverse", warmup_rounds=3)
    expected = [0.25, 0.5, 0.75, 1, 1 / 2, 1 / 3]
    assert [learning_rate(warm, number) for number in range(1, 7)] == pytest.approx(expected)
    cosine = Training(lr=1.0, schedule="cosine", decay_rounds=4, final_lr=0.2)
    rates = [learning_rate(cosine, number) for number in (1, 3, 5, 99)]
    assert rates == pytest.approx([1, 0.6, 0.2, 0.2]), "after its end it stays"


def test_cosine_ends_with_the_run():
    settings = Settings(rounds=20, training=Training(schedule="cosine", warmup_rounds=5))
    assert settings.training.over(settings.rounds).decay_rounds == 15
    rates = [work_of(settings, number, 0).lr for number in (6, 20)]
    assert rates[0] == 0.01 and 0 < rates[1] < 0.001


@pytest.mark.parametrize("whole", [{"local_epochs": 4}, {"local_steps": 4}])
def test_stragglers_do_less(whole):
    settings = Settings(seed=3, training=Training(work="stragglers:0.9", **whole))
    (name,) = whole
    done = Counter(getattr(work_of(settings, number, client), name) for number in range(50) for client in range(40))
    # 90 % draw from 1 to 4, the others do all 4.
    assert [done[n] / 2000 for n in (1, 2, 3, 4)] == pytest.approx([0.225, 0.225, 0.225, 0.325], abs=0.03)
    assert work_of(settings, 7, 3) == work_of(settings, 7, 3)
    assert work_of(Settings(), 7, 3) == Training()


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"local-steps": 3, "local-epochs": 2}, "training.local-steps: training.local-epochs is given, too"),
        ({"schedule": "step", "decay": 0.1}, "training.schedule: step needs training.decay-rounds"),
        ({"schedule": "exponential"}, "training.schedule: exponential needs training.decay"),
        ({"decay": 0.5}, "training.decay: training.schedule=constant does not use it; .*choose step or exponential"),
        ({"final-lr": 0.001, "schedule": "inverse"}, "training.final-lr: .*choose cosine"),
        ({"final-lr": 1, "schedule": "cosine"}, "training.final-lr: it is above training.lr"),
        ({"schedule": "linear"}, "training.schedule = 'linear': Input should be 'constant', 'step'"),
        ({"schedule": "cosine", "decay-rounds": 9}, "is 0 after round 9, but rounds is 100; raise"),
        ({"optimizer": "adam", "nesterov": True}, "training.nesterov: training.optimizer=adam does not use it"),
        ({"momentum": 0, "nesterov": True}, "training.nesterov: it needs training.momentum above 0"),
        ({"optimizer": "adamw"}, "training.optimizer: it needs training.weight-decay"),
        ({"betas": [0.5, 0.9]}, "training.betas: training.optimizer=sgd does not use it; .*choose adam or adamw"),
        ({"optimizer": "adam", "betas": [0.5, 1.0]}, "training.betas = .*: both must be"),
        ({"optimizer": "adam", "betas": [0.5]}, "training.betas"),
        ({"optimizer": "lion"}, "training.optimizer = 'lion': Input should be 'sgd', 'adam' or 'adamw'"),
        ({"work": "stragglers:2"}, "training.work = 'stragglers:2': write full, or stragglers:P"),
        ({"work": "half"}, "training.work = 'half': write full"),
        ({"work": "stragglers:0.5", "local-epochs": 1}, "training.work: it draws whole epochs or steps"),
        ({"work": "stragglers:0.5", "local-epochs": 2.5}, "training.work: it draws whole epochs or steps"),
        ({"label-smoothing": 1}, "training.label-smoothing = 1: Input should be less than 1"),
        ({"clip-norm": 0}, "training.clip-norm = 0: Input should be greater than 0"),
        ({"local-epochs": 0}, "training.local-epochs = 0: Input should be greater than 0"),
        ({"local-epochs": True}, "training.local-epochs = True: must not be true or false"),
        ({"weight-decay": -1}, "training.weight-decay = -1"),
        ({"warmup-rounds": -1}, "training.warmup-rounds = -1"),
    ],
)  # fmt: skip
def test_wrong_recipes_are_one_line(training, words):
    from fedmr_flwr.errors import ConfigError

    with pytest.raises(ConfigError, match=words) as caught:
        parse({"training": training}, "run.yaml")
    assert "\n" not in str(caught.value)
