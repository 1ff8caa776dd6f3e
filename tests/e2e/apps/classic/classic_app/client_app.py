"""The clients, which know nothing of FedMR."""

from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import Context

from classic_app.task import Net, get_weights, load_data, set_weights, test, train


class FlowerClient(NumPyClient):
    def __init__(self, net, dataset, local_epochs, lr):
        self.net = net
        self.dataset = dataset
        self.local_epochs = local_epochs
        self.lr = lr

    def fit(self, parameters, config):
        set_weights(self.net, parameters)
        train_loss = train(self.net, self.dataset, self.local_epochs, self.lr)
        return get_weights(self.net), len(self.dataset), {"train_loss": train_loss}

    def evaluate(self, parameters, config):
        set_weights(self.net, parameters)
        loss, accuracy = test(self.net, self.dataset)
        return loss, len(self.dataset), {"accuracy": accuracy}


def client_fn(context: Context):
    partition_id = context.node_config["partition-id"]
    num_partitions = context.node_config["num-partitions"]
    dataset = load_data(partition_id, num_partitions)
    return FlowerClient(Net(), dataset, context.run_config["local-epochs"], context.run_config["lr"]).to_client()


app = ClientApp(client_fn)
