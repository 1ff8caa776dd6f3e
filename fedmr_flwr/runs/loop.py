"""The rounds of a run, for any Flower strategy."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import Strategy

from fedmr_flwr.config import Settings
from fedmr_flwr.errors import FederationError
from fedmr_flwr.roster import RosterGrid
from fedmr_flwr.training import Score

# Seconds to wait for the replies of a round.
TIMEOUT = 3600.0


def run(
    settings: Settings,
    strategy: Strategy,
    grid: RosterGrid,
    arrays: ArrayRecord,
    train_config: ConfigRecord,
    evaluate: Callable[[ArrayRecord], Score],
    report: Callable[[Mapping[str, Any], ArrayRecord], None],
) -> ArrayRecord:
    """Train for all rounds.

    Args:
        settings: rounds and how often to evaluate.
        strategy: which models to send and what to make of those that come back.
        grid: carries the messages and accounts for them.
        arrays: the initial global model.
        train_config: sent with every model.
        evaluate: scores a global model.
        report: called after each round with its row of metrics and the global model.

    Returns:
        The final global model.

    Raises:
        FederationError: in some round no client gave a good reply.
    """
    for number in range(1, settings.rounds + 1):
        arrays, row = _train_round(number, strategy, grid, arrays, train_config)
        if number % settings.evaluate_every == 0 or number == settings.rounds:
            start = time.perf_counter()
            score = evaluate(arrays)
            row |= {
                "test-loss": score.loss,
                "test-accuracy": score.accuracy,
                "evaluation-seconds": round(time.perf_counter() - start, 4),
            }
        report(row, arrays)
    return arrays


def _train_round(
    number: int, strategy: Strategy, grid: RosterGrid, arrays: ArrayRecord, train_config: ConfigRecord
) -> tuple[ArrayRecord, dict[str, Any]]:
    """Train one round; return the new global model and the round's metrics.

    A function of its own, so that the messages of one round are gone before those of the next are made.
    """
    start = time.perf_counter()
    messages = strategy.configure_train(number, arrays, train_config, grid)
    try:
        replies = grid.send_and_receive(messages, timeout=TIMEOUT)
    except FederationError as error:
        raise FederationError(f"round {number}: {error}") from None
    combined, metrics = strategy.aggregate_train(number, replies)
    if combined is None:
        raise FederationError(f"round {number}: the strategy made no model of {len(replies)} replies")
    exchange = grid.exchange
    row: dict[str, Any] = {
        "round": number,
        "seconds": round(time.perf_counter() - start, 4),
        **(metrics or {}),
        "replies": exchange.replies,
        "failures": len(exchange.failures),
    }
    if exchange.failures:
        row["failed"] = [vars(failure) for failure in exchange.failures]
    return combined, row
