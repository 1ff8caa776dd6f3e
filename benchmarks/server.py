"""Seconds of the server's own part of a round beside one plain copy of the population.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 .venv/bin/python benchmarks/server.py

`fedmr run` sets this variable for Flower's processes; without it Linux hands out the memory of a large message
in pages of 4 KiB, which takes longer than to fill it.
"""

import time
import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from rich.console import Console
from rich.table import Table

from fedmr_flwr import FedMR, models
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.core.population import recombine
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.core.units import units
from fedmr_flwr.models.packing import layout_of
from fedmr_flwr.wire.checks import fault
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.in_process import InProcessGrid

REPEATS = 15


def vgg16() -> Layout:
    """The layout of VGG-16 for CIFAR-10: 33,646,666 parameters in 97 tensors."""
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


class Plain(FedMR):
    """FedMR without its diagnostics, which are measured apart."""

    def diagnostics(self) -> dict[str, float]:
        """Report nothing."""
        return {}


class Server:
    """A FedMR server between two rounds, with the trained models of all its clients at hand."""

    def __init__(self, layout: Layout, slots: int) -> None:
        self.codec, self.slots = Codec(layout), slots
        self.rng = np.random.default_rng(0)
        self.grid = InProcessGrid(ClientApp(), slots)
        self.strategy = Plain(clients_per_round=slots, layout=layout)
        self.arrays = self.model()
        self.round = 1
        self.sent = self.strategy.configure_train(1, self.arrays, ConfigRecord(), self.grid)
        self.replies = self.trained()

    def model(self) -> ArrayRecord:
        """A model with trained weights: no two tensors are equal."""
        layout = self.codec.layout
        values = self.rng.standard_normal(layout.size, np.float32)
        return self.codec.encode(Parts([values], [np.ones(layout.counters, np.int64)]))

    def trained(self) -> list[Message]:
        """What the clients return."""
        replies = []
        for at, message in enumerate(self.sent):
            message.metadata.__dict__["_message_id"] = f"{self.round}-{at}"
            content = RecordDict({"arrays": self.model(), "metrics": MetricRecord({"num-examples": 10})})
            replies.append(Message(content, reply_to=message))
        return replies

    def check(self) -> None:
        """Look at every reply, as RosterGrid does."""
        assert not any(fault(reply, sent) for reply, sent in zip(self.replies, self.sent, strict=True))

    def combine(self) -> None:
        """Unpack the replies and average them."""
        arrays, _ = self.strategy.aggregate_train(self.round, self.replies)
        assert arrays is not None
        self.arrays = arrays
        self.sent = []

    def diagnose(self) -> None:
        """Measure how alike the models are, and how far apart in each unit."""
        FedMR.diagnostics(self.strategy)

    def deal(self) -> None:
        """Recombine the population into the messages of the next round."""
        self.round += 1
        self.sent = self.strategy.configure_train(self.round, self.arrays, ConfigRecord(), self.grid)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(layout: Layout, slots: int) -> tuple[dict[str, float], float]:
    """Return the best seconds of each part, and the peak memory as a multiple of the population."""
    server = Server(layout, slots)
    population = np.stack([server.rng.standard_normal(layout.size, np.float32) for _ in range(slots)])
    columns = [unit.floats for unit in units(layout, "layer")]
    parts: dict[str, Callable[[], object]] = {
        "copy": population.copy,
        "recombine": partial(recombine, population, columns, server.rng),
        "check": server.check,
        "combine": server.combine,
        "diagnose": server.diagnose,
        "deal": server.deal,
    }
    best = dict.fromkeys(parts, np.inf)
    for _ in range(REPEATS):
        for name, work in parts.items():
            best[name] = min(best[name], seconds(work))
        server.replies = server.trained()
    whole_population = population.nbytes
    del population, parts, server
    # Once more with every allocation counted, from the replies (one population) to the next messages.
    tracemalloc.start()
    server = Server(layout, slots)
    server.check()
    tracemalloc.reset_peak()
    server.combine()
    server.deal()
    peak = tracemalloc.get_traced_memory()[1] / whole_population
    tracemalloc.stop()
    return best, peak


def main() -> None:
    """Measure three sizes and print a table."""
    cnn = layout_of(models.build("cnn", (1, 28, 28), 10))
    table = Table(caption=f"milliseconds, best of {REPEATS}")
    table.add_column("")
    measured = []
    for layout, slots in [(cnn, 10), (cnn, 100), (vgg16(), 10)]:
        table.add_column(f"{slots} x {layout.size / 1e6:.2f} M", justify="right")
        measured.append(measure(layout, slots))
    rows: dict[str, Callable[[dict[str, float]], float]] = {
        "one copy of the population": lambda best: best["copy"],
        "recombine, matrix to matrix": lambda best: best["recombine"],
        "check the replies": lambda best: best["check"],
        "unpack, mean": lambda best: best["combine"],
        "similarity and spread, for the metrics": lambda best: best["diagnose"],
        "deal: recombine, pack, make messages": lambda best: best["deal"],
    }
    for name, value in rows.items():
        table.add_row(name, *(f"{1000 * value(best):.1f}" for best, _ in measured))
    table.add_section()
    ratios: dict[str, Callable[[dict[str, float]], float]] = {
        "recombine / copy (reach 1.5)": lambda best: best["recombine"] / best["copy"],
        "deal / copy": lambda best: best["deal"] / best["copy"],
        "unpack, mean, deal / copy (reach 6)": lambda best: (best["combine"] + best["deal"]) / best["copy"],
        "the same with the checks / copy": lambda best: (
            (best["check"] + best["combine"] + best["deal"]) / best["copy"]
        ),
        "the same with similarity and spread / copy": lambda best: sum(
            best[part] / best["copy"] for part in ("check", "combine", "diagnose", "deal")
        ),
    }
    for name, value in ratios.items():
        table.add_row(name, *(f"{value(best):.2f}" for best, _ in measured))
    table.add_row("peak memory / population (reach 3)", *(f"{peak:.2f}" for _, peak in measured))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
