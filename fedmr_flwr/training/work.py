"""What a client does in a round: its learning rate, and its number of epochs or steps."""

import math

from fedmr_flwr.config.settings import Settings
from fedmr_flwr.config.training import Training
from fedmr_flwr.core.randomness import stream


def work_of(settings: Settings, number: int, client: int) -> Training:
    """Return the training of one client in one round.

    It depends on the arguments alone, so that every engine, and a resumed run, gives a client the same work.

    Args:
        settings: of the run.
        number: of the round, 1 for the first.
        client: its number.

    Returns:
        The settings' own training, with the learning rate of the round, and the local epochs or steps of the client.

    Source: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, section 5.2, for stragglers.
    """
    training = settings.training.over(settings.rounds)
    own: dict[str, float | int] = {}
    if training.varies:
        own["lr"] = learning_rate(training, number)
    if training.straggling:
        rng = stream(settings.seed, "work", number, client)
        if rng.random() < training.straggling:
            name = "local_steps" if training.local_steps else "local_epochs"
            own[name] = int(rng.integers(1, int(getattr(training, name)) + 1))
    return training.model_copy(update=own) if own else training


def fine_tuning(settings: Settings, number: int, client: int, steps: int) -> Training:
    """Return the training with which a client adapts a model to its own data before it scores it.

    Args:
        settings: of the run.
        number: of the round, which decides the learning rate.
        client: its number.
        steps: local steps.
    """
    return work_of(settings, number, client).model_copy(update={"local_steps": steps, "local_epochs": None})


def learning_rate(training: Training, number: int) -> float:
    """Return the learning rate of a round.

    Args:
        training: the highest learning rate, the schedule with its options, and the warm-up.
        number: of the round, 1 for the first.

    Returns:
        With s rounds since the end of the warm-up, c decay-rounds and a decay of d: lr, times 1 (constant),
        d^floor(s / c) (step), d^s (exponential), (1 + cos(pi s / c)) / 2 until s = c (cosine, from lr to final-lr),
        or c / (c + s) (inverse); in round n of w warm-up rounds n / (w + 1) of lr.
    """
    if number <= training.warmup_rounds:
        return training.lr * number / (training.warmup_rounds + 1)
    since, length = number - 1 - training.warmup_rounds, training.decay_rounds or 1
    match training.schedule:
        case "step" | "exponential":
            assert training.decay is not None
            return float(training.lr * training.decay ** (since // length))
        case "cosine":
            share = (1 + math.cos(math.pi * min(since, length) / length)) / 2
            return training.final_lr + (training.lr - training.final_lr) * share
        case "inverse":
            return training.lr * length / (length + since)
        case _:
            return training.lr
