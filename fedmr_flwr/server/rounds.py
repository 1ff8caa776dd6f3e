"""The rounds of a run, for any Flower strategy."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import Strategy

from fedmr_flwr.algorithms.base import Algorithm
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import BadRoundError, FederationError, LostActorError
from fedmr_flwr.wire.codec import retyped
from fedmr_flwr.wire.grids.roster import RosterGrid

Row = dict[str, Any]

# What these say is the server's to say: clients' metrics of such a name are left out.
_RESERVED = {
    "round", "seconds", "bad", "replies", "failures", "failures-by-kind", "failed", "lost-state", "clients", "slots",
    "similarity", "spread", "recombination", "bytes-down", "bytes-up", "test-loss", "test-accuracy",
    "slot-accuracies", "evaluation-seconds",
}  # fmt: skip


def run(
    settings: Settings,
    strategy: Strategy,
    grid: RosterGrid,
    arrays: ArrayRecord,
    train_config: ConfigRecord,
    evaluate: Callable[[ArrayRecord], Mapping[str, Any]],
    report: Callable[[Row, ArrayRecord, bool], None],
    completed: int = 0,
) -> ArrayRecord:
    """Train for all rounds.

    Args:
        settings: rounds, patience, and how often to evaluate.
        strategy: which models to send and what to make of those that come back.
        grid: carries the messages and accounts for them.
        arrays: the global model after the rounds that are completed.
        train_config: sent with every model.
        evaluate: scores a global model: numbers by name.
        report: called after each round with its row of metrics, the global model, and whether the run stops
            here, before the rounds are done. A row with "bad" tells of a round with too few good replies, in
            which neither the strategy nor the model changed.
        completed: rounds that are done already.

    Returns:
        The final global model.

    Raises:
        FederationError: more than `settings.max_bad_rounds` rounds in a row were bad, or a process of Flower's
            simulation died.
    """
    bad_rounds = 0
    for number in range(completed + 1, settings.rounds + 1):
        start = time.perf_counter()
        problem: BadRoundError | None = None
        try:
            arrays, row = _train_round(number, strategy, grid, arrays, train_config, settings.round_timeout)
            bad_rounds = 0
        except BadRoundError as error:
            problem, row = _lost_actor(grid) or error, {"bad": True}
            bad_rounds += not problem.absent  # the next round waits for those who have gone
        row = {"round": number, "seconds": round(time.perf_counter() - start, 4), **row, **_account(grid)}
        if number % settings.evaluate_every == 0 or number == settings.rounds:
            start = time.perf_counter()
            row |= evaluate(arrays)
            row["evaluation-seconds"] = round(time.perf_counter() - start, 4)
        stops = bad_rounds > settings.max_bad_rounds or bool(problem and problem.final)
        report(row, arrays, stops)
        if stops:
            after = f"; {bad_rounds} bad rounds in a row" if bad_rounds > 1 else ""
            raise FederationError(f"round {number}: {problem}{after}")
    return arrays


def _train_round(
    number: int,
    strategy: Strategy,
    grid: RosterGrid,
    arrays: ArrayRecord,
    train_config: ConfigRecord,
    timeout: float,
) -> tuple[ArrayRecord, Row]:
    """Train one round; return the new global model and the round's metrics.

    A function of its own, so that the messages of one round are gone before those of the next are made.
    """
    grid.await_clients()
    messages = strategy.configure_train(number, arrays, train_config, grid)
    replies = grid.send_and_receive(messages, timeout=timeout)
    if lost := _lost_actor(grid):
        raise lost
    combined, metrics = strategy.aggregate_train(number, replies)
    if combined is None:
        raise FederationError(f"round {number}: the strategy made no model of {len(replies)} replies")
    grid.settle(number)
    if grid.exchange.lost_state and isinstance(strategy, Algorithm) and strategy.begins_anew():
        grid.forget()
    more = strategy.diagnosis if isinstance(strategy, Algorithm) else {}
    return retyped(combined, arrays), {
        name: value for name, value in (metrics or {}).items() if name not in _RESERVED
    } | more


def _lost_actor(grid: RosterGrid) -> LostActorError | None:
    clients = grid.exchange.by_kind.get("actor-died")
    if not clients:
        return None
    return LostActorError(
        f"a Ray process has died with {clients} clients, perhaps for want of memory or with its node, and Flower "
        "starts no other; "
        "go on with `fedmr resume`, which loses nothing"
    )


def _account(grid: RosterGrid) -> Row:
    """Say how the round's exchange went."""
    exchange = grid.exchange
    row: Row = {"clients": exchange.clients, "replies": exchange.replies, "failures": len(exchange.failures)}
    row |= {"bytes-down": exchange.bytes_down, "bytes-up": exchange.bytes_up}
    if exchange.lost_state:
        row["lost-state"] = exchange.lost_state
    if exchange.failures:
        row |= {"failures-by-kind": exchange.by_kind, "failed": [vars(failure) for failure in exchange.failures]}
    return row
