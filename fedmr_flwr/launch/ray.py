"""The Ray engine: Flower's simulation, started, followed and stopped as `flwr run` wants it."""

from fedmr_flwr.config.settings import Settings
from fedmr_flwr.launch import ray_cluster as cluster
from fedmr_flwr.launch.flower import app_folder, follow, launching, submit
from fedmr_flwr.launch.local_superlink import choose_ports, local_superlink
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs.folder import RunFolder


def run(settings: Settings, display: Display, prepared: RunFolder | None = None) -> RunFolder:
    """Run a federation in Flower's simulation, or resume one.

    A SuperLink is started for this run alone, with a FLWR_HOME and free ports of its own, and stopped at the
    end. Its log is flower.log in the run folder.

    Args:
        settings: what to run, with its folder.
        display: shows the rounds.
        prepared: the run's folder, if it is made already, perhaps by an earlier server that was stopped.

    Returns:
        The run folder, complete.

    Raises:
        FedmrError: the configuration, the data or the federation is wrong, or Flower failed.
    """
    ray_address = cluster.address_of(settings)
    cluster.check(settings, ray_address)
    ports = choose_ports()
    resources = {
        "num-supernodes": settings.clients,
        "client-resources-num-cpus": settings.client_cpus,
        "client-resources-num-gpus": float(settings.ray.client_gpus),
    }
    with (
        launching(settings, prepared) as out,
        local_superlink(app_folder(), out.path / "flower.log", ray_address, ports) as superlink,
    ):
        run_id = submit(superlink.connection, settings, out, resources)
        follow(superlink.connection, run_id, out, display, superlink.simulation_died)
    return out
