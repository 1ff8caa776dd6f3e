"""The rounds of a run: sending models, checking replies, combining them, and reporting metrics."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord

from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import BadRoundError, LostActorError, RunError
from fedmr_flwr.runs.rows import loss_of, scored_on
from fedmr_flwr.server import accounts
from fedmr_flwr.server.accounts import Row
from fedmr_flwr.server.ledger import Ledger
from fedmr_flwr.wire.checks import is_finite, log_failures
from fedmr_flwr.wire.codec import restore_dtypes
from fedmr_flwr.wire.grids.roster import RosterGrid
from fedmr_flwr.wire.strategy import ServerStrategy

# Failures of clients that are disconnected, or were disconnected while they trained.
_ABSENT = {"offline", "node-lost"}


def run(
    settings: Settings,
    strategy: ServerStrategy[Any],
    grid: RosterGrid,
    ledger: Ledger,
    arrays: ArrayRecord,
    train_config: ConfigRecord,
    evaluate: Callable[[int, ArrayRecord, bool], Mapping[str, Any]],
    report: Callable[[Row, ArrayRecord, bool], None],
    completed: int = 0,
    should_stop: Callable[[Row], bool] = lambda row: False,
) -> ArrayRecord:
    """Train for all rounds.

    Args:
        settings: rounds and patience.
        strategy: returns the models to send and combines the trained ones.
        grid: sends the messages.
        ledger: the latest round of each client.
        arrays: the global model after the completed rounds.
        train_config: sent with every model.
        evaluate: scores the global model after a round; returns numbers by name, none if no evaluation is due. It is
            called once more, with True, after a round that turns out to be the last one.
        report: called after each round with its row of metrics, the global model, and whether the run ends
            before its last round. A row with "bad" is that of a round with too few good replies, in which
            neither the strategy nor the model changed; one with "problem" is that of a model that cannot be used.
        completed: the number of completed rounds.
        should_stop: returns whether the run ends after a round, given its row.

    Returns:
        The final global model.

    Raises:
        RunError: more than `settings.max_bad_rounds` consecutive rounds were bad, a process of Flower's
            simulation died, or training diverged.
    """
    bad_rounds = 0
    for number in range(completed + 1, settings.rounds + 1):
        start = time.perf_counter()
        problem: BadRoundError | None = None
        ends = False
        # Filled in during the round, so that a bad round reports its counts, too.
        account: Row = {"clients": (), "replies": 0, "failures": 0, "bytes-down": {}, "bytes-up": {}}
        try:
            arrays, row = _train_round(number, settings, strategy, grid, ledger, arrays, train_config, account)
            bad_rounds = 0
        # A bad round drops its good replies, too, so that a resumed run gives the same models.
        except BadRoundError as error:
            problem, row = error, {"bad": True}
            bad_rounds += not problem.absent  # the next round waits for the disconnected clients
        row = {"round": number, "seconds": round(time.perf_counter() - start, 4), **row, **account}
        if not is_finite(strategy.codec.decode(arrays).floats):
            row["problem"] = "the global model has NaN or infinite values"
        else:
            _evaluate(evaluate, row, arrays)
            if ends := should_stop(row):
                _evaluate(evaluate, row, arrays, ends)
            if (loss := loss_of(row)) is not None and not math.isfinite(loss):
                row["problem"] = f"the loss of the global model on the {scored_on([row])} set is {loss}"
        if "problem" in row:
            report(row, arrays, True)
            raise RunError(
                f"round {number}: {row['problem']}: training has diverged; lower training.lr, or the step of the "
                "strategy on the server"
            )
        fails = bad_rounds > settings.max_bad_rounds or bool(problem and problem.final)
        report(row, arrays, fails or ends)
        strategy.forget_replies()
        if fails:
            after = f"; {bad_rounds} consecutive bad rounds" if bad_rounds > 1 else ""
            raise RunError(f"round {number}: {problem}{after}")
        if ends:
            break
    return arrays


def _evaluate(
    evaluate: Callable[[int, ArrayRecord, bool], Mapping[str, Any]], row: Row, arrays: ArrayRecord, ends: bool = False
) -> None:
    """Add the scores of the global model to a round's metrics."""
    start = time.perf_counter()
    if scores := evaluate(row["round"], arrays, ends):
        seconds = row.get("evaluation-seconds", 0.0) + time.perf_counter() - start
        row |= {**scores, "evaluation-seconds": round(seconds, 4)}


def _train_round(
    number: int,
    settings: Settings,
    strategy: ServerStrategy[Any],
    grid: RosterGrid,
    ledger: Ledger,
    arrays: ArrayRecord,
    train_config: ConfigRecord,
    account: Row,
) -> tuple[ArrayRecord, Row]:
    """Train one round and fill in its counts; return the new global model and the round's metrics.

    A separate function, so that the messages of one round are freed before those of the next are created.

    Raises:
        BadRoundError: too few clients gave a good reply; nothing has changed.
    """
    grid.await_clients(settings.min_good_replies)
    if refused := grid.refused:
        account["refused"] = refused
    messages = strategy.configure_train(number, arrays, train_config, grid)
    # A client that is drawn twice gets one message, and gives one reply.
    least = min(settings.min_good_replies, len(messages))
    ledger.write_into(messages, grid)
    exchange = grid.exchange(messages, timeout=settings.round_timeout)
    judged = strategy.judge(exchange.replies)
    failures = [accounts.with_reason(failure, exchange) for failure in judged.failures]
    log_failures(failures)
    account |= accounts.counts(exchange, len(judged.good), failures)
    if settings.evaluation.forgetting:
        account["around-training"] = accounts.around_training(messages, exchange, judged.good)
    limited = grid.limited_examples
    if limited := {client: limited[client] for client in judged.good if client in limited}:
        account["limited-examples"] = limited
    # Flower keeps a dead actor in its pool: the clients of one fail at once, so it gets ever more of them.
    if died := sum(failure.kind == "actor-died" for failure in failures):
        raise LostActorError(
            f"a Ray worker died while training {died} clients, perhaps out of memory or with its node, and Flower "
            "does not restart it; continue with `fedmr resume`, which loses nothing"
        )
    if len(judged.good) < least:
        absent = all(failure.kind in _ABSENT for failure in failures) and grid.lacks_clients(least)
        raise BadRoundError(accounts.too_few_replies(len(judged.good), failures, exchange, least), absent)
    # Judging and combining are separate calls, so that a bad round is known before the strategy changes.
    combined, metrics = strategy.aggregate(number, judged)
    assert combined is not None
    ledger.settle(number, [*judged.good])
    if judged.lost_state:
        account["lost-state"] = judged.lost_state
        if strategy.reset_clients():
            ledger.reset()
    row = accounts.client_metrics(metrics or {}) | dict(strategy.diagnostics)
    return restore_dtypes(combined, arrays), row
