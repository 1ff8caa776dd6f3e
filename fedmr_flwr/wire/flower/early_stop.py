"""Rounds until a condition holds: `Strategy.start` with `should_stop`, for versions of Flower that lack it."""

import inspect
import io
import logging
import time
from collections.abc import Callable

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.serverapp.strategy.strategy_utils import log_strategy_start_info

# From 1.43 on.
FLOWER_STOPS_EARLY = "should_stop" in inspect.signature(Strategy.start).parameters
_log = logging.getLogger("flwr")


def run_until(
    should_stop: Callable[[int, Result], bool],
    strategy: Strategy,
    grid: Grid,
    initial_arrays: ArrayRecord,
    num_rounds: int,
    timeout: float,
    train_config: ConfigRecord | None,
    evaluate_config: ConfigRecord | None,
    evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None,
) -> Result:
    """Run at most `num_rounds` rounds of a strategy, and log them as Flower does.

    Args:
        should_stop: called after each round with its number and the result so far; True ends the training.
        strategy: any; this and the following are the arguments of its `start`.
        grid: carries messages to the clients.
        initial_arrays: the first global model.
        num_rounds: the number of rounds if nothing ends them earlier.
        timeout: for how many seconds to wait for replies.
        train_config: is sent to the clients that train.
        evaluate_config: is sent to the clients that evaluate.
        evaluate_fn: scores a global model on the server, from round 0 on.
    """
    started = time.monotonic()
    _log.info("Starting %s strategy:", type(strategy).__name__)
    log_strategy_start_info(num_rounds, initial_arrays, train_config, evaluate_config)
    strategy.summary()
    _log.info("")
    train_config, evaluate_config = train_config or ConfigRecord(), evaluate_config or ConfigRecord()
    result = Result(arrays=initial_arrays)
    if evaluate_fn:
        scores = evaluate_fn(0, initial_arrays)
        _log.info("Initial global evaluation results: %s", scores)
        if scores is not None:
            result.evaluate_metrics_serverapp[0] = scores
    for number in range(1, num_rounds + 1):
        _log.info("")
        _log.info("[ROUND %s/%s]", number, num_rounds)
        messages = strategy.configure_train(number, result.arrays, train_config, grid)
        arrays, metrics = strategy.aggregate_train(number, grid.send_and_receive(messages, timeout=timeout))
        if arrays is not None:
            result.arrays = arrays
        if metrics is not None:
            _log.info("\t└──> Aggregated MetricRecord: %s", metrics)
            result.train_metrics_clientapp[number] = metrics
        messages = strategy.configure_evaluate(number, result.arrays, evaluate_config, grid)
        metrics = strategy.aggregate_evaluate(number, grid.send_and_receive(messages, timeout=timeout))
        if metrics is not None:
            _log.info("\t└──> Aggregated MetricRecord: %s", metrics)
            result.evaluate_metrics_clientapp[number] = metrics
        if evaluate_fn:
            _log.info("Global evaluation")
            scores = evaluate_fn(number, result.arrays)
            _log.info("\t└──> MetricRecord: %s", scores)
            if scores is not None:
                result.evaluate_metrics_serverapp[number] = scores
        if should_stop(number, result):
            _log.info("Stopping early after round %s", number)
            break
    _log.info("")
    _log.info("Strategy execution finished in %.2fs", time.monotonic() - started)
    _log.info("")
    _log.info("Final results:")
    _log.info("")
    for line in io.StringIO(str(result)):
        _log.info("\t%s", line.strip("\n"))
    _log.info("")
    return result
