"""The clients, which know nothing of FedMR."""

import time

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from plain_app.task import Net, load_data
from plain_app.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    partition_id = context.node_config["partition-id"]
    dataset = load_data(partition_id, context.node_config["num-partitions"])
    train_loss = train_fn(model, dataset, context.run_config["local-epochs"], context.run_config["lr"])

    state = model.state_dict()
    if msg.content["config"]["trouble"] and msg.content["config"]["server-round"] == 2:
        state = trouble(partition_id, state)
    model_record = ArrayRecord(state)
    metric_record = MetricRecord({"train_loss": train_loss, "num-examples": len(dataset)})
    return Message(content=RecordDict({"arrays": model_record, "metrics": metric_record}), reply_to=msg)


def trouble(partition_id, state):
    """What goes wrong at four of the clients."""
    if partition_id == 0:
        raise RuntimeError("the disk is gone")
    if partition_id == 1:
        time.sleep(40)  # longer than the server waits
    if partition_id == 2:
        state["out.bias"][0] = torch.nan
    if partition_id == 3:
        state["out.bias"] = torch.zeros(11)
    return state
