"""The evaluation of the global model by clients, as in Flower's FedAvg."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from fedmr_flwr.algorithms.metrics import mean_metrics, plain_numbers
from fedmr_flwr.core.drawing import draw_clients
from fedmr_flwr.wire.checks import log_failures
from fedmr_flwr.wire.flower.early_stop import FLOWER_STOPS_EARLY, run_until
from fedmr_flwr.wire.foreign import judge_foreign, metrics_of
from fedmr_flwr.wire.messages import LOST_STATE, ROUND

# Flower's, which shows lines at this level.
_log = logging.getLogger("flwr")


class ClientEvaluation(FedAvg):
    """Flower's FedAvg, with clients drawn from the seed and their replies checked.

    Attributes:
        seed: the seed of the run.
    """

    seed: int
    _asked: dict[int, Message]

    if not FLOWER_STOPS_EARLY:

        def start(
            self,
            grid: Grid,
            initial_arrays: ArrayRecord,
            num_rounds: int = 3,
            timeout: float = 3600,
            train_config: ConfigRecord | None = None,
            evaluate_config: ConfigRecord | None = None,
            evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
            should_stop: Callable[[int, Result], bool] | None = None,
        ) -> Result:
            """Run Flower's loop; as in its version 1.43, `should_stop` may end it early, see `run_until`."""
            if should_stop is None:
                return super().start(
                    grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
                )
            return run_until(
                should_stop, self, grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config,
                evaluate_fn,
            )  # fmt: skip

    @abstractmethod
    def nodes(self, grid: Grid, least: int, first: bool = False) -> list[int]:
        """Wait until at least `least` nodes are connected, and return them in a stable order."""

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Draw clients, and build a new message with the global model for each of them."""
        self._asked = {}
        if self.fraction_evaluate == 0.0:
            return []
        nodes = self.nodes(grid, self.min_available_nodes)
        count = min(max(int(len(nodes) * self.fraction_evaluate), self.min_evaluate_nodes), len(nodes))
        _log.info("configure_evaluate: Sampled %s nodes (out of %s)", count, len(nodes))
        for client in draw_clients(server_round, self.seed, len(nodes), count, "evaluate"):
            told = ConfigRecord({**config, ROUND: server_round})
            content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: told})
            self._asked[client] = Message(content, nodes[client], MessageType.EVALUATE)
        return list(self._asked.values())

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the metrics of the good replies; None if there is none."""
        judged = judge_foreign(self._asked, replies, self.arrayrecord_key, self.weighted_by_key)
        if self._asked:
            good, failed = len(judged.good), len(judged.failures)
            _log.info("aggregate_evaluate: Received %s results and %s failures", good, failed)
        log_failures(judged.failures)
        self._asked = {}
        contents = [answer.original for answer in judged.good.values()]
        return self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key) if contents else None


def mean_records(contents: Sequence[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Average the metrics of replies, each over the clients that returned it.

    Args:
        contents: of the replies.
        weighted_by_key: the name of the metric that is a client's weight.
    """
    replies = []
    for content in contents:
        metrics = plain_numbers(metrics_of(content))
        weight = metrics.pop(weighted_by_key)
        assert isinstance(weight, float)
        # A flag for the server, not a metric to average.
        metrics.pop(LOST_STATE, None)
        replies.append((weight, metrics))
    return MetricRecord({**mean_metrics(replies)})
