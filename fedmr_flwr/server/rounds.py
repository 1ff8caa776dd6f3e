"""The rounds of a run: sending models, checking replies, combining them, and reporting metrics."""

import math
import time
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from numpy.typing import NDArray

from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import BadRoundError, LostActorError, RunError
from fedmr_flwr.runs.rows import loss_of, scored_on
from fedmr_flwr.wire.checks import UNKNOWN_CLIENT, Failure, is_finite, log_failures
from fedmr_flwr.wire.codec import restore_dtypes
from fedmr_flwr.wire.grids.roster import Exchange, RosterGrid
from fedmr_flwr.wire.messages import CONFIG, LAST_ROUND, METRICS
from fedmr_flwr.wire.strategy import ServerStrategy

Row = dict[str, Any]

# The server reports these itself: clients' metrics with such names are dropped.
_RESERVED = {
    "round", "seconds", "bad", "replies", "failures", "failures-by-kind", "failed", "lost-state", "clients", "slots",
    "similarity", "spread", "recombination", "bytes-down", "bytes-up", "test-loss", "test-accuracy",
    "validation-loss", "validation-accuracy",
    "slot-accuracies", "evaluation-seconds", "problem", "limited-examples", "collapse", "training-set-loss",
    "training-set-accuracy", "macro-f1", "balanced-accuracy", "top-5", "client-accuracy", "tuned-accuracy",
    "slot-client-accuracy", "slot-tuned-accuracy", "around-training",
}  # fmt: skip
# What clients measure before and after they train.
_AROUND = ("before-loss", "before-accuracy", "after-loss", "after-accuracy")
# Failures of clients that are disconnected, or were disconnected while they trained.
_ABSENT = {"offline", "node-lost"}


class Ledger:
    """The latest round with a good reply of each client.

    A client keeps its state by round, and each message states the round of its last good reply; so a lost reply
    counts for neither side.

    Args:
        clients: the number of clients.
    """

    def __init__(self, clients: int) -> None:
        self._last_rounds = np.zeros(clients, np.int64)

    def write_into(self, messages: Sequence[Message], grid: RosterGrid) -> None:
        """Add to each message the round of its client's last good reply, 0 if there was none."""
        for message in messages:
            client = grid.client_of(message.metadata.dst_node_id)
            last = {LAST_ROUND: int(self._last_rounds[client])}
            # A new record, because strategies send the same one to all clients.
            message.content[CONFIG] = ConfigRecord({**message.content.config_records[CONFIG], **last})

    def settle(self, number: int, clients: Sequence[int]) -> None:
        """Record a round as the last one of these clients."""
        self._last_rounds[list(clients)] = number

    def reset(self) -> None:
        """Forget all rounds, so that every client restarts from zero."""
        self._last_rounds[:] = 0

    def save(self) -> dict[str, NDArray[Any]]:
        """Return the ledger's state by name."""
        return {"last-rounds": self._last_rounds.copy()}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Continue from the result of an earlier `save`."""
        self._last_rounds = arrays["last-rounds"].copy()


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
    messages = strategy.configure_train(number, arrays, train_config, grid)
    # A client that is drawn twice gets one message, and gives one reply.
    least = min(settings.min_good_replies, len(messages))
    ledger.write_into(messages, grid)
    exchange = grid.exchange(messages, timeout=settings.round_timeout)
    judged = strategy.judge(exchange.replies)
    failures = [_offline_or(failure, exchange) for failure in judged.failures]
    log_failures(failures)
    account |= _account(exchange, len(judged.good), failures)
    if settings.evaluation.forgetting:
        account["around-training"] = _around_training(messages, exchange, judged.good)
    if limited := {
        client: grid.limited_examples[client] for client in judged.good if client in grid.limited_examples
    }:
        account["limited-examples"] = limited
    # Flower keeps a dead actor in its pool: the clients of one fail at once, so it gets ever more of them.
    if died := sum(failure.kind == "actor-died" for failure in failures):
        raise LostActorError(
            f"a Ray worker died while training {died} clients, perhaps out of memory or with its node, and Flower "
            "does not restart it; continue with `fedmr resume`, which loses nothing"
        )
    if len(judged.good) < least:
        absent = all(failure.kind in _ABSENT for failure in failures) and grid.lacks_clients(least)
        raise BadRoundError(_too_few(len(judged.good), failures, exchange, least), absent)
    # Judging and combining are separate calls, so that a bad round is known before the strategy changes.
    combined, metrics = strategy.aggregate(number, judged)
    assert combined is not None
    ledger.settle(number, [*judged.good])
    if judged.lost_state:
        account["lost-state"] = judged.lost_state
        if strategy.reset_clients():
            ledger.reset()
    # A client chooses the names of its metrics, and must not overwrite the server's own; lists are no numbers.
    numbers = {
        name: value
        for name, value in (metrics or {}).items()
        if name not in _RESERVED and not isinstance(value, list)
    }
    return restore_dtypes(combined, arrays), numbers | dict(strategy.diagnostics)


def _offline_or(failure: Failure, exchange: Exchange) -> Failure:
    """Return the failure of a missing reply with its reason, if its node was not connected."""
    if failure.client not in exchange.offline:
        return failure
    return replace(failure, kind="offline", reason="its node is not connected")


def _account(exchange: Exchange, good: int, failures: Sequence[Failure]) -> Row:
    """Return the counts of a round's messages, replies and bytes."""
    row: Row = {"clients": exchange.clients, "replies": good, "failures": len(failures)}
    row |= {"bytes-down": exchange.bytes_down, "bytes-up": exchange.bytes_up}
    if failures:
        kinds = Counter(failure.kind for failure in failures)
        row |= {"failures-by-kind": dict(sorted(kinds.items())), "failed": [vars(failure) for failure in failures]}
    return row


def _around_training(messages: Sequence[Message], exchange: Exchange, good: Container[int]) -> list[Row]:
    """Return what each client with a good reply measured before and after it trained."""
    clients = {
        message.metadata.message_id: client for message, client in zip(messages, exchange.clients, strict=True)
    }
    rows: list[Row] = []
    for reply in exchange.replies:
        client = clients.get(reply.metadata.reply_to_message_id, UNKNOWN_CLIENT)
        if client in good:
            metrics = reply.content.metric_records[METRICS]
            rows.append({"client": client, **{name: metrics[name] for name in _AROUND if name in metrics}})
    return rows


def _too_few(good: int, failures: Sequence[Failure], exchange: Exchange, least: int) -> str:
    who = f"{good} of {len(exchange.clients)} clients" if good else "no client"
    fewer = f", fewer than min-good-replies = {least}" if good else ""
    first = f" (client {failures[0].client}: {failures[0].kind}: {failures[0].reason})" if failures else ""
    return f"{who} gave a good reply{fewer}{first}"
