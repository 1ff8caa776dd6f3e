"""Seconds per exchange with two nodes on this machine, with TLS and keys, compared with Flower's plain way.

.venv/bin/python benchmarks/deployment.py
"""

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import yaml
from rich.console import Console
from rich.table import Table

from fedmr_flwr.deployment import commands, folders
from fedmr_flwr.deployment.admission import admit
from fedmr_flwr.deployment.commands import SUPERLINK
from fedmr_flwr.errors import EngineError
from fedmr_flwr.launch.flower import status
from fedmr_flwr.wire.flower.commands import Connection
from fedmr_flwr.wire.flower.environment import environment, node_environment

APP = Path(__file__).parent / "exchange-app"
NODES = 2
PLAIN = "Flower's commands, an array per tensor, its loop"
# How models are sent, and whose loop fetches the replies.
WAYS = {
    "fedmr deploy, an array per tensor, Flower's loop": ("tensors", "flower"),
    "packed, Flower's loop": ("float32", "flower"),
    "packed, our loop": ("float32", "own"),
    "packed as float16, our loop": ("float16", "own"),
}
# Seconds of each exchange, and the megabytes of a model.
Measured = tuple[list[float], float]


def free_ports(count: int) -> list[int]:
    """Return free ports."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@contextmanager
def deployed(folder: Path, plain: bool) -> Iterator[Connection]:
    """Run a SuperLink and its nodes, as Flower's commands start them or as `fedmr deploy` does."""
    folders.create(folder, ["localhost"], NODES)
    ports = free_ports(2 + NODES)
    reach = {"fleet_port": ports[0], "port": ports[1]}
    server = folders.read_server(folder / "server").model_copy(update={"listen": "127.0.0.1", **reach})
    server_env = commands.configure_server(folder / "server", server)
    node_env = environment(folder) if plain else node_environment(folder)
    with ExitStack() as stack:

        def start(command: list[str], env: dict[str, str]) -> int:
            log = stack.enter_context((folder / "flower.log").open("ab"))
            process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process.pid

        def start_executor(command: list[str], env: dict[str, str]) -> None:
            start(["flower-superexec", *command[4:]] if plain else command, env)

        command = commands.superlink(folder / "server", server)
        if plain:  # without --database Flower keeps everything in memory
            at = command.index("--database")
            command = ["flower-superlink", *command[3:at], *command[at + 2 :]]
        superlink = start(command, server_env)
        start_executor(commands.superlink_executor(folder / "server", server, superlink), server_env)
        connection = Connection(SUPERLINK, server_env)
        wait_for(connection)
        admit(folder / "server", server_env)
        for number in range(NODES):
            own = folder / f"node-{number}"
            data = folder / f"own-{number}.npz"
            images(data, number)
            changed = {"data": str(data), "device": "cpu", "local_port": ports[2 + number], **reach}
            node = folders.read_node(own).model_copy(update=changed)
            commands.configure_node(own)
            command = commands.supernode(own, node)
            supernode = start(["flower-supernode", *command[3:]] if plain else command, node_env)
            start_executor(commands.supernode_executor(own, node, supernode), node_env)
        yield connection


def images(path: Path, seed: int) -> None:
    """Write ten random images, for one step of training."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 256, (10, 3, 32, 32), dtype=np.uint8), np.arange(10)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)


def wait_for(connection: Connection) -> None:
    """Wait until a SuperLink replies."""
    deadline = time.monotonic() + 60
    while True:
        try:
            connection.command("list", SUPERLINK)
            return
        except EngineError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def exchange(connection: Connection, folder: Path, model: str, exchanges: int, records: str, loop: str) -> Measured:
    """Run the exchange app; return the seconds of all exchanges but the first, and the megabytes of a model."""
    out = folder / "out.json"
    config = {"model": model, "exchanges": exchanges, "records": records, "loop": loop, "out": str(out)}
    run_config = " ".join(f"{name}={json.dumps(value)}" for name, value in config.items())
    run = str(connection.command("run", str(APP), SUPERLINK, "--run-config", run_config)["run-id"])
    asked = time.monotonic()
    while not out.exists():
        time.sleep(0.5)
        if time.monotonic() - asked > 15:  # seldom: a query of Flower takes a second of a processor
            state, asked = status(connection, run), time.monotonic()
            if state[0].startswith("finished") and not out.exists():
                sys.exit(
                    f"the exchange app has ended without a result: {' '.join(state)}; its log: {folder}/flower.log"
                )
    found = json.loads(out.read_text())
    while status(connection, run)[0] != "finished:completed":
        time.sleep(1)
    out.unlink()
    return found["seconds"][1:], found["megabytes"]


def rounds(connection: Connection, folder: Path, model: str, count: int, wire: str, sealed: bool = False) -> Measured:
    """Run `fedmr run` with one step of training at each node; return the seconds of all rounds but the first."""
    run_dir = folder / f"run-{model}-{wire}{'-sealed' * sealed}"
    conf = {
        "rounds": count, "clients": NODES, "clients-per-round": NODES, "evaluate-every": count, "wire": wire,
        "checkpoint-every": count, "data": {"name": f"npz:{folder / 'own-0.npz'}"}, "partition": {"name": "nodes"},
        "model": {"name": model}, "training": {"local-epochs": 1, "batch-size": 10}, "run-dir": str(run_dir),
        "privacy": {"sealed": sealed},
    }  # fmt: skip
    path = folder / "conf.yaml"
    path.write_text(yaml.safe_dump(conf))
    command = [Path(sys.executable).parent / "fedmr", "run", path, "--superlink", SUPERLINK]
    subprocess.run(command, env=connection.env, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["seconds"] for row in rows[1:]], rows[-1]["bytes-up"]["arrays"] / NODES / 1e6


def measure(models: list[str], exchanges: int, report: Callable[[str], None]) -> dict[str, dict[str, Measured]]:
    """Measure every way with every model."""
    found: dict[str, dict[str, Measured]] = {}

    def note(name: str, model: str, measured: Measured) -> None:
        found.setdefault(name, {})[model] = measured
        report(f"{name}, {model}: {', '.join(f'{seconds:.2f}' for seconds in measured[0])} s")

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "plain")
        with deployed(folder, plain=True) as connection:
            for model in models:
                note(PLAIN, model, exchange(connection, folder, model, exchanges, "tensors", "flower"))
        folder = Path(temporary, "ours")
        with deployed(folder, plain=False) as connection:
            for model in models:
                for name, how in WAYS.items():
                    note(name, model, exchange(connection, folder, model, exchanges, *how))
                for wire in ("float32", "float16"):
                    name = f"fedmr run, a whole round, {wire}"
                    note(name, model, rounds(connection, folder, model, exchanges, wire))
                name = "fedmr run, a whole round, float32, sealed"
                note(name, model, rounds(connection, folder, model, exchanges, "float32", sealed=True))
    return found


def main(
    exchanges: Annotated[int, typer.Option(help="Exchanges of each kind, the first of which is dropped.")] = 5,
    model: Annotated[list[str], typer.Option(help="May be repeated.")] = ["resnet18", "vgg16"],  # noqa: B006
) -> None:
    """Measure and print a table."""
    found = measure(model, exchanges, Console(stderr=True, highlight=False).print)
    table = Table(caption=f"mean of {exchanges - 1}, flwr {version('flwr')}")
    table.add_column("")
    for column in (name for one in model for name in (f"{one}, s", "x plain", "MB")):
        table.add_column(column, justify="right")
    for name, measured in found.items():
        cells = []
        for one in model:
            seconds, megabytes = measured[one]
            ratio = np.mean(seconds) / np.mean(found[PLAIN][one][0])
            cells += [f"{np.mean(seconds):.2f}", f"{ratio:.2f}", f"{megabytes:.1f}"]
        table.add_row(name, *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    typer.run(main)
