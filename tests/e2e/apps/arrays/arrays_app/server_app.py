"""The server: Flower's template for lists of arrays, with one strategy after the other."""

import json
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp import strategy as flower

import fedmr_flwr
from arrays_app.task import load_data, new_model, score

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    held_out = load_data(-1, 1)

    def evaluate_fn(server_round, arrays):
        return MetricRecord({"accuracy": score(arrays.to_numpy_ndarrays(), *held_out)[1]})

    rounds, found = context.run_config["num-server-rounds"], {}
    for kind in flower.FedAvg, fedmr_flwr.FedMR:
        result = kind(fraction_evaluate=0.5).start(grid, ArrayRecord(new_model()), rounds, evaluate_fn=evaluate_fn)
        found[kind.__name__] = {
            "accuracies": [metrics["accuracy"] for metrics in result.evaluate_metrics_serverapp.values()],
            "train": {number: sorted(metrics) for number, metrics in result.train_metrics_clientapp.items()},
            "evaluate": {number: sorted(metrics) for number, metrics in result.evaluate_metrics_clientapp.items()},
            "types": [array.dtype for array in result.arrays.values()],
        }
    Path(context.run_config["out"]).write_text(json.dumps(found))
