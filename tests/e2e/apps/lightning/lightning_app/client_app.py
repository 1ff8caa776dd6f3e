"""The clients, which know nothing of FedMR."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from lightning_app.task import LitDigits, Trainer, load_data

app = ClientApp()


def prepared(msg: Message, context: Context):
    model = LitDigits()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    return model, load_data(context.node_config["partition-id"], context.node_config["num-partitions"])


@app.train()
def train(msg: Message, context: Context):
    model, loader = prepared(msg, context)
    loss = Trainer(max_epochs=3).fit(model, loader)
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(loader.dataset)})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    model, loader = prepared(msg, context)
    metrics = MetricRecord({"eval_acc": Trainer(1).test(model, loader), "num-examples": len(loader.dataset)})
    return Message(RecordDict({"metrics": metrics}), reply_to=msg)
