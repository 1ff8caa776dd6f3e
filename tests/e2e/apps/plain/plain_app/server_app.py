"""The server: Flower's current template, with one strategy after the other, the last with clients in trouble."""

import json
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedmr_flwr import FedMR
from plain_app.task import Net, load_data, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    model = Net()
    initial, found = ArrayRecord(model.state_dict()), {}
    for name, kind in {"FedAvg": FedAvg, "FedMR": FedMR, "trouble": FedMR}.items():
        # Its clients do not evaluate: this server does.
        strategy = kind(min_available_nodes=context.run_config["clients-per-round"], fraction_evaluate=0.0)
        result = strategy.start(
            grid=grid,
            initial_arrays=initial,
            num_rounds=context.run_config["num-server-rounds"],
            timeout=25 if name == "trouble" else 3600,
            train_config=ConfigRecord({"trouble": name == "trouble"}),
        )
        model.load_state_dict(result.arrays.to_torch_state_dict())
        _, accuracy = test(model, load_data(-1, 1))
        found[name] = {
            "accuracy": accuracy,
            "batches": int(model.norm.num_batches_tracked),
            "metrics": {number: dict(metrics) for number, metrics in result.train_metrics_clientapp.items()},
        }
    Path(context.run_config["out"]).write_text(json.dumps(found))
