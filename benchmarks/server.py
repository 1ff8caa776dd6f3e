"""Seconds of the server's part of a round, compared with one plain copy of the population.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 .venv/bin/python benchmarks/server.py

For three populations it prints the milliseconds of

- one plain copy of the population, the unit of the ratios below;
- the three steps of a round in the server's loop: `judge`, `aggregate` and `configure_train` of FedMR;
- parts of them, measured separately: the checks of the replies, similarity and spread, and recombination
  (`Recombination.gather` and `Codec.encode`);

then the ratios to the copy, with their targets, and the peak memory between the replies of the first round
and the messages of the second, in populations.

`fedmr run` sets the variable for Flower's processes; without it Linux allocates the memory of a large message in
pages of 4 KiB, which takes longer than filling it.
"""

import time
import tracemalloc
from collections.abc import Callable, Sequence

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from rich.console import Console
from rich.table import Table

from fedmr_flwr import FedMR, models
from fedmr_flwr.algorithms.contract import Reply
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.core.population import average, similarity, spread
from fedmr_flwr.core.recombination import Recombination, sources
from fedmr_flwr.models.packing import layout_of
from fedmr_flwr.wire.checks import Judged, judge
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.flower.messages import assign_id
from fedmr_flwr.wire.grids.in_process import InProcessGrid

REPEATS = 15


def vgg16() -> Layout:
    """Return the layout of VGG-16 for CIFAR-10: 33,646,666 parameters in 97 tensors."""
    arrays: dict[str, np.ndarray] = {}
    depth = 3
    for at, width in enumerate([64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]):
        arrays |= {f"conv{at}.weight": np.empty((width, depth, 3, 3), np.float32)}
        arrays |= {f"conv{at}.bias": np.empty(width, np.float32)}
        arrays |= {f"bn{at}.{name}": np.empty(width, np.float32) for name in ("weight", "bias", "mean", "var")}
        arrays |= {f"bn{at}.count": np.empty((), np.int64)}
        depth = width
    for at, (width, inputs) in enumerate([(4096, 512), (4096, 4096), (10, 4096)]):
        arrays |= {
            f"fc{at}.weight": np.empty((width, inputs), np.float32),
            f"fc{at}.bias": np.empty(width, np.float32),
        }
    return Layout.of(arrays)


class Server:
    """A FedMR server between two rounds, with the trained models of all its clients."""

    def __init__(self, layout: Layout, slots: int) -> None:
        self.codec = Codec(layout)
        self.rng = np.random.default_rng(0)
        self.grid = InProcessGrid(ClientApp(), slots)
        self.strategy = FedMR(clients_per_round=slots, layout=layout)
        self.arrays = self.codec.encode(self.model())
        self.round = 0
        self.sent: list[Message] = []
        self.judged: Judged[Reply] = Judged({})
        self.configure()
        self.train()

    def model(self) -> Packed:
        """Return a model with random weights: no two tensors are equal."""
        layout = self.codec.layout
        return Packed(self.rng.standard_normal(layout.size, np.float32), np.ones(layout.counters, np.int64))

    def train(self) -> None:
        """Create the clients' replies."""
        self.replies = []
        for message in self.sent:
            metrics = MetricRecord({"num-examples": 10})
            content = RecordDict({"arrays": self.codec.encode(self.model()), "metrics": metrics})
            self.replies.append(Message(content, reply_to=assign_id(message)))

    def judge(self) -> None:
        """Check and decode the replies."""
        self.judged = self.strategy.judge(self.replies)

    def aggregate(self) -> None:
        """Average the models, measure similarity and spread, and encode the mean."""
        arrays, _ = self.strategy.aggregate(self.round, self.judged)
        assert arrays is not None
        self.arrays = arrays
        self.sent, self.judged = [], Judged({})

    def configure(self) -> None:
        """Recombine the population and create the messages of the next round."""
        self.round += 1
        self.sent = self.strategy.configure_train(self.round, self.arrays, ConfigRecord(), self.grid)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def best_seconds(layout: Layout, slots: int) -> dict[str, float]:
    """Return the best seconds of each part."""
    server = Server(layout, slots)
    population = np.stack([server.rng.standard_normal(layout.size, np.float32) for _ in range(slots)])
    models = [Packed(row, np.ones(layout.counters, np.int64)) for row in population]
    global_model, recombination = average(models), Recombination(layout)
    columns = [unit.floats for unit in recombination.units]

    def check() -> None:
        sent = dict(enumerate(server.sent))
        assert len(judge(sent, server.replies).good) == slots

    def diagnose() -> None:
        similarity(population)
        spread(population, global_model.floats, columns)

    def recombine() -> None:
        drawn = sources(0, 2, 0, len(recombination.units), slots)
        assert drawn is not None
        for model in recombination.gather(models, global_model, drawn):
            server.codec.encode(model)

    parts: dict[str, Callable[[], object]] = {
        "copy": population.copy,
        "recombine": recombine,
        "check": check,
        "judge": server.judge,
        "diagnose": diagnose,
        "aggregate": server.aggregate,
        "configure": server.configure,
    }
    best = dict.fromkeys(parts, np.inf)
    for _ in range(REPEATS):
        for name, work in parts.items():
            best[name] = min(best[name], seconds(work))
        server.train()
    return best


def peak_memory(layout: Layout, slots: int) -> float:
    """Return the peak memory between the replies (one population) and the next messages, in populations."""
    tracemalloc.start()
    server = Server(layout, slots)
    tracemalloc.reset_peak()
    server.judge()
    server.aggregate()
    server.configure()
    peak = tracemalloc.get_traced_memory()[1] / (slots * layout.size * layout.dtype.itemsize)
    tracemalloc.stop()
    return peak


def main(sizes: Sequence[tuple[Layout, int]]) -> None:
    """Measure populations of K models of a layout and print a table."""
    table = Table(caption=f"milliseconds, best of {REPEATS}")
    table.add_column("")
    measured = []
    for layout, slots in sizes:
        table.add_column(f"{slots} x {layout.size / 1e6:.2f} M", justify="right")
        measured.append((best_seconds(layout, slots), peak_memory(layout, slots)))
    rows = {
        "one copy of the population": "copy",
        "check and decode the replies": "judge",
        "  check the replies": "check",
        "mean, similarity and spread": "aggregate",
        "  similarity and spread, for the metrics": "diagnose",
        "recombine, pack, make messages": "configure",
        "  recombine and pack": "recombine",
    }
    for name, part in rows.items():
        table.add_row(name, *(f"{1000 * best[part]:.1f}" for best, _ in measured))
    table.add_section()
    steps = ("judge", "aggregate", "configure")
    ratios: dict[str, tuple[Sequence[str], Sequence[str]]] = {
        "recombine and pack / copy (target: 1.5)": (["recombine"], []),
        "recombine, pack, make messages / copy": (["configure"], []),
        "unpack, mean, recombine, pack, make messages / copy (target: 6)": (steps, ["check", "diagnose"]),
        "the same with the checks / copy": (steps, ["diagnose"]),
        "the same with similarity and spread / copy": (steps, []),
    }
    for name, (added, taken) in ratios.items():
        table.add_row(
            name,
            *(
                f"{(sum(best[part] for part in added) - sum(best[part] for part in taken)) / best['copy']:.2f}"
                for best, _ in measured
            ),
        )
    table.add_row("peak memory / population (target: 3)", *(f"{peak:.2f}" for _, peak in measured))
    Console(width=110).print(table)


if __name__ == "__main__":
    cnn = layout_of(models.build("cnn", (1, 28, 28), 10))
    main([(cnn, 10), (cnn, 100), (vgg16(), 10)])
