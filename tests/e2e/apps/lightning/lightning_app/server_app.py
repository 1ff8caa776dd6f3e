"""The server: a strategy with a loop of its own, which keeps the best model."""

import json
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp import strategy as flower

import fedmr_flwr
from lightning_app.task import LitDigits, Trainer, load_data

app = ServerApp()


def keeping_the_best(base):
    """A strategy that is derived from another."""

    class KeepBest(base):
        best = 0.0

        def start(self, grid, initial_arrays, num_rounds=3, timeout=3600, evaluate_fn=None, **_):
            arrays, accuracies = initial_arrays, []
            for number in range(1, num_rounds + 1):
                messages = self.configure_train(number, arrays, ConfigRecord({"lr": 0.1}), grid)
                new, _ = self.aggregate_train(number, grid.send_and_receive(messages, timeout=timeout))
                arrays = arrays if new is None else new
                messages = self.configure_evaluate(number, arrays, ConfigRecord(), grid)
                scores = self.aggregate_evaluate(number, grid.send_and_receive(messages, timeout=timeout))
                accuracies.append(scores["eval_acc"])
                self.best = max(self.best, evaluate_fn(arrays))
            return accuracies

    return KeepBest


@app.main()
def main(grid: Grid, context: Context) -> None:
    model, held_out = LitDigits(), load_data(-1, 1)

    def evaluate_fn(arrays):
        model.load_state_dict(arrays.to_torch_state_dict())
        return Trainer(1).test(model, held_out)

    initial, found = ArrayRecord(model.state_dict()), {}
    for kind in flower.FedAvg, fedmr_flwr.FedMR:
        strategy = keeping_the_best(kind)(fraction_train=0.5)
        accuracies = strategy.start(grid, initial, context.run_config["num-server-rounds"], evaluate_fn=evaluate_fn)
        found[kind.__name__] = {"best": strategy.best, "accuracies": accuracies}
    Path(context.run_config["out"]).write_text(json.dumps(found))
