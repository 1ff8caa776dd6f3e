"""The clients, which know nothing of FedMR."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from arrays_app.task import fit, load_data, score

app = ClientApp()


def own_data(context: Context):
    return load_data(context.node_config["partition-id"], context.node_config["num-partitions"])


@app.train()
def train(msg: Message, context: Context):
    images, labels = own_data(context)
    model, loss = fit(msg.content["arrays"].to_numpy_ndarrays(), images, labels)
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(labels)})
    return Message(RecordDict({"model": ArrayRecord(model), "train_metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    images, labels = own_data(context)
    loss, accuracy = score(msg.content["arrays"].to_numpy_ndarrays(), images, labels)
    metrics = MetricRecord({"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(labels)})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)
