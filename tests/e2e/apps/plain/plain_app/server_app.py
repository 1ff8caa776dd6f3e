"""The server: Flower's current template, with one strategy after the other."""

import json
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp import strategy as flower

import fedmr_flwr
from plain_app.task import Net, load_data, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    if context.run_config["trouble"]:
        wake_up(grid, context.run_config["clients-per-round"])
    model = Net()
    initial, found = ArrayRecord(model.state_dict()), {}
    for kind in [fedmr_flwr.FedMR] if context.run_config["trouble"] else [flower.FedAvg, fedmr_flwr.FedMR]:
        # Its clients do not evaluate: this server does.
        strategy = kind(min_available_nodes=context.run_config["clients-per-round"], fraction_evaluate=0.0)
        result = strategy.start(
            grid=grid,
            initial_arrays=initial,
            num_rounds=context.run_config["num-server-rounds"],
            timeout=25 if context.run_config["trouble"] else 3600,
        )
        model.load_state_dict(result.arrays.to_torch_state_dict())
        _, accuracy = test(model, load_data(-1, 1))
        found[kind.__name__] = {
            "accuracy": accuracy,
            "batches": int(model.norm.num_batches_tracked),
            "metrics": {number: dict(metrics) for number, metrics in result.train_metrics_clientapp.items()},
        }
    Path(context.run_config["out"]).write_text(json.dumps(found))


def wake_up(grid, count):
    """Let all clients start, however long that takes, so that only who is late on purpose is late."""
    while len(nodes := list(grid.get_node_ids())) < count:
        time.sleep(0.5)
    grid.send_and_receive([Message(RecordDict(), node, MessageType.QUERY) for node in nodes])
