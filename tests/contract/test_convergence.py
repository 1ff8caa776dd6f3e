"""FedMR beside FedAvg where the theory applies: strongly convex clients, noisy gradients, steps that fall as 1/t.

Client i has the loss (w - b_i)' A_i (w - b_i) / 2 with a diagonal A_i, whose curvatures lie between MU and SMOOTH.
All clients together have the optimum (sum A_i)^-1 sum A_i b_i, which is none of theirs.
"""

from functools import cache

import numpy as np
import pytest

from fedmr_flwr import FedAvg, FedMR
from fedmr_flwr.algorithms.contract import Reply, Round
from fedmr_flwr.core.layout import Layout, Packed
from tests.support.rounds import whole

LAYERS, WIDTH, CLIENTS, STEPS, ROUNDS = 4, 5, 8, 5, 200
MU, SMOOTH, NOISE = 1.0, 4.0, 1.0
LAYOUT = Layout.of({f"layer{at}.weight": np.zeros(WIDTH, np.float64) for at in range(LAYERS)})
CURVATURES = np.random.default_rng(0).uniform(MU, SMOOTH, (CLIENTS, LAYOUT.size))
OPTIMA = np.random.default_rng(1).normal(0, 2, (CLIENTS, LAYOUT.size))
OPTIMUM = (CURVATURES * OPTIMA).sum(0) / CURVATURES.sum(0)
SEEDS = range(3)
ALGORITHMS = {
    "fedavg": (FedAvg, {"weighting": "uniform"}),
    "layer": (FedMR, {"unit": "layer"}),
    "two stages": (FedMR, {"unit": "layer", "first_stage_rounds": 40}),
}


def falling(step):
    """The step size of Li et al., "On the Convergence of FedAvg on Non-IID Data", ICLR 2020, theorem 1."""
    return 2 / MU / (max(8 * SMOOTH / MU, STEPS) + step)


def constant(step):
    """The first of them, for ever."""
    return falling(0)


def trained(starts, clients, number, seed, step_size):
    """Take the local steps of some clients, each from its model, and return their models."""
    noise = np.random.default_rng([seed, number]).normal(0, NOISE, (STEPS, CLIENTS, LAYOUT.size))
    w = np.stack(starts)
    for step in range(STEPS):
        gradient = CURVATURES[clients] * (w - OPTIMA[clients]) + noise[step, clients]
        w -= step_size((number - 1) * STEPS + step) * gradient
    return w


@cache
def errors(name, drawn, step_size=falling):
    """Return the squared distance of the global model from the optimum after each round, mean over the seeds."""
    kind, options = ALGORITHMS[name]
    total = np.zeros(ROUNDS)
    for seed in SEEDS:
        strategy = kind(clients_per_round=drawn, seed=seed, layout=LAYOUT, **options)
        model = Packed(np.full(LAYOUT.size, 5.0), np.zeros(0, np.int64))
        for number in range(1, ROUNDS + 1):
            plan = strategy.plan(Round(number, seed, LAYOUT, CLIENTS, None, lambda model=model: model))
            starts = [whole(model).floats for model in plan.models]
            ends = trained(starts, [*plan.clients], number, seed, step_size)
            replies = {
                client: Reply(Packed(end, model.ints), 1) for client, end in zip(plan.clients, ends, strict=True)
            }
            slots = plan.results(replies, plan.models.__getitem__)
            model = strategy.finish(plan, slots, lambda made: made)
            total[number - 1] += np.square(model.floats - OPTIMUM).sum()
    return total / len(SEEDS)


def scaled(name, drawn, last, step_size=falling):
    """Return round times error, mean over the last fifth of some rounds: constant if errors fall as 1/t."""
    numbers = np.arange(last - last // 5, last) + 1
    return float((numbers * errors(name, drawn, step_size)[numbers - 1]).mean())


# All clients in each round, as in the theory, or half of them.
@pytest.mark.slow
@pytest.mark.parametrize("drawn", [CLIENTS, CLIENTS // 2])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_error_falls_as_one_over_t(name, drawn):
    assert 1 / 2 < scaled(name, drawn, ROUNDS) / scaled(name, drawn, ROUNDS // 4) < 2


@pytest.mark.parametrize("drawn", [CLIENTS, CLIENTS // 2])
@pytest.mark.parametrize("name", ["layer", "two stages"])
def test_fedmr_is_as_fast_as_fedavg(name, drawn):
    for last in (ROUNDS // 4, ROUNDS // 2, ROUNDS):
        assert 1 / 2 < scaled(name, drawn, last) / scaled("fedavg", drawn, last) < 2, last


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_constant_steps_do_not_arrive(name):
    assert scaled(name, CLIENTS, ROUNDS, constant) > 10 * scaled(name, CLIENTS, ROUNDS)


def test_optimum_is_nobodys_own():
    assert np.linalg.norm(OPTIMA - OPTIMUM, axis=1).min() > 4
