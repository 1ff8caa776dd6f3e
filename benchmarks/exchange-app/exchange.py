"""An app that sends models to two clients, which add a little noise to every weight instead of training."""

import json
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedmr_flwr import models
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.models.packing import layout_of, pack, unpack
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.bounded import BoundedGrid
from fedmr_flwr.wire.grids.superlink import SuperLinkGrid

SHAPE, CLASSES, CLIENTS = (3, 32, 32), 10, 2

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Load the model, change it, and send it back, in the form in which it came."""
    model = models.build(context.run_config["model"], SHAPE, CLASSES)
    read(message.content["arrays"], model, context.run_config["records"])
    noise = torch.Generator().manual_seed(context.node_config["partition-id"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=1e-3)
    return Message(RecordDict({"arrays": write(model, context.run_config["records"])}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Measure exchanges of two different models; each received model is sent next."""
    config = context.run_config
    records = config["records"]
    while len(nodes := list(grid.get_node_ids())) < CLIENTS:
        time.sleep(0.5)
    if config["loop"] == "own":
        grid = SuperLinkGrid(BoundedGrid(grid))
    arrays = [write(models.build(config["model"], SHAPE, CLASSES, seed), records) for seed in range(CLIENTS)]
    seconds = []
    for _ in range(config["exchanges"]):
        start = time.perf_counter()
        sent = [
            Message(RecordDict({"arrays": record}), node, "train") for record, node in zip(arrays, nodes, strict=True)
        ]
        replies = list(grid.send_and_receive(sent))
        arrays = [reply.content["arrays"] for reply in replies]
        seconds.append(time.perf_counter() - start)
    assert len(arrays) == CLIENTS
    size = sum(len(array.data) for array in arrays[0].values())
    out = Path(config["out"])
    out.with_suffix(".tmp").write_text(json.dumps({"seconds": seconds, "megabytes": size / 1e6}))
    out.with_suffix(".tmp").replace(out)


def write(model: torch.nn.Module, records: str) -> ArrayRecord:
    """Convert a model to a record."""
    if records == "tensors":
        return ArrayRecord(model.state_dict())
    layout = layout_of(model)
    packed = pack(model, layout)
    return Codec(layout, wire=records).encode(Parts([packed.floats], [packed.ints]))


def read(record: ArrayRecord, model: torch.nn.Module, records: str) -> None:
    """Load a record of `write` into a model."""
    if records == "tensors":
        model.load_state_dict(record.to_torch_state_dict())
    else:
        layout = layout_of(model)
        unpack(Codec(layout, wire=records).decode(record), layout, model)
