"""The Ray engine: Flower's simulation, started and followed with Flower's own commands."""

import os
from pathlib import Path

from fedmr_flwr.config.identity import own_code
from fedmr_flwr.config.paths import app_folder
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.launch import ray_cluster as cluster
from fedmr_flwr.launch.flower import follow, launching, submit
from fedmr_flwr.launch.local_superlink import choose_ports, local_superlink
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs.folder import RunFolder


def run(settings: Settings, display: Display, prepared: RunFolder | None = None) -> RunFolder:
    """Run an experiment in Flower's simulation, or resume one.

    A SuperLink is started for this run, with its own FLWR_HOME and free ports, and stopped at the end. Its log is
    flower.log in the run folder.

    Args:
        settings: of the run, with its folder.
        display: shows the rounds.
        prepared: the run's folder, if it exists, perhaps from an earlier server that was stopped.

    Returns:
        The run folder, complete.

    Raises:
        FedmrError: the configuration, the data or the clients are wrong, or Flower failed.
    """
    ray_address = cluster.address_of(settings)
    # Before anything is written or started: Flower would fail a minute later, with a traceback.
    cluster.check(settings, ray_address)
    ports = choose_ports()
    resources = {
        "num-supernodes": settings.clients,
        "client-resources-num-cpus": settings.client_cpus,
        "client-resources-num-gpus": float(settings.ray.client_gpus),
    }
    with (
        launching(settings, display, prepared) as out,
        local_superlink(_python_path(settings), out.log, ray_address, ports) as superlink,
    ):
        run_id = submit(superlink.connection, settings, out, resources)
        follow(superlink.connection, run_id, out, display, superlink.simulation_died, superlink.output)
    return out


def _python_path(settings: Settings) -> str:
    """Return Python's path for Flower's processes."""
    paths = [str(app_folder()), os.environ.get("PYTHONPATH")]
    # Only if it is needed: a file such as random.py in the current folder would take the place of Python's own.
    if own_code(settings):
        paths.append(str(Path.cwd()))
    return os.pathsep.join(filter(None, paths))
