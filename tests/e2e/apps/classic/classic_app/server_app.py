"""The server: Flower's classic template with another strategy."""

import json
from pathlib import Path

from flwr.common import Context, ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig
from flwr.serverapp import ServerApp

from classic_app.task import Net, get_weights, load_data, set_weights, test
from fedmr_flwr import classic


def server_fn(context: Context):
    net = Net()
    held_out = load_data(-1, 1)
    accuracies = {}

    def evaluate_fn(server_round, parameters, config):
        set_weights(net, parameters)
        loss, accuracies[server_round] = test(net, held_out)
        if server_round == context.run_config["num-server-rounds"]:
            Path(context.run_config["out"]).write_text(json.dumps({"accuracies": accuracies}))
        return loss, {"accuracy": accuracies[server_round]}

    # The one line that changes; the names of the layers are an offer.
    strategy = classic.FedMR(
        keys=list(net.state_dict()),
        fraction_fit=1.0,
        min_fit_clients=context.run_config["clients-per-round"],
        min_available_clients=context.run_config["clients-per-round"],
        initial_parameters=ndarrays_to_parameters(get_weights(net)),
        evaluate_fn=evaluate_fn,
    )
    config = ServerConfig(num_rounds=context.run_config["num-server-rounds"])
    return ServerAppComponents(strategy=strategy, config=config)


app = ServerApp(server_fn=server_fn)
