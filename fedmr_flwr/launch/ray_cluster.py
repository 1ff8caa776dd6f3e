"""The Ray of a run, its own or a cluster to join; checked before anything is written."""

import json
import os
import re
import socket
import subprocess
import sys

import torch

from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import ConfigError, EngineError
from fedmr_flwr.wire.flower.environment import RAY_ADDRESS

_CONNECT_SECONDS = 5.0
_JOIN_SECONDS = 120.0
# Joins a cluster as Flower will; in a separate process, because Ray changes signal handlers and starts threads.
_JOIN = """
import json, ray
try:
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    result = [node["Resources"] for node in ray.nodes()]
except Exception as error:
    result = str(error.__cause__ or error).partition("Traceback")[0]
print(json.dumps(result))
"""


def address_of(settings: Settings) -> str:
    """Return the cluster to join: from the settings, else from the environment, else "local", a Ray of its own.

    Raises:
        ConfigError: the address is invalid.
    """
    name, address = "ray.address", settings.ray.address
    if address is None:
        name, address = RAY_ADDRESS, os.environ.get(RAY_ADDRESS) or "local"
    if address not in ("auto", "local") and not re.fullmatch(r"(\[[^\[\]\s]+\]|[^:/\[\]\s]+):\d{1,5}", address):
        raise ConfigError(f"{name} = {address!r}: write host:port as `ray start` prints it, auto or local")
    return address


def check(settings: Settings, address: str) -> None:
    """Check the Ray of a run.

    Args:
        settings: of the run.
        address: the result of `address_of`.

    Raises:
        EngineError: it cannot be joined, or has too few resources for a client.
    """
    if address == "local":
        _check_this_machine(settings)
    else:
        _check_cluster(settings, address)


def _check_cluster(settings: Settings, address: str) -> None:
    """Join a Ray cluster and leave it again.

    Raises:
        EngineError: it cannot be reached or joined, or has too few resources for a client.
    """
    where = f"the Ray cluster at '{address}'"
    if address != "auto":  # checked first, because Ray itself would try for minutes
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise EngineError(
                f"{where} does not reply ({error}); start it with `ray start`, or set ray.address=local"
            ) from None
    # The address by the variable, because that is how Flower's simulation will receive it.
    env = os.environ | {RAY_ADDRESS: address, "RAY_gcs_server_request_timeout_seconds": "10"}
    try:
        joined = subprocess.run(
            [sys.executable, "-c", _JOIN], env=env,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_JOIN_SECONDS, check=False,
        )  # fmt: skip
        result = json.loads(joined.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        result = f"no reply within {_JOIN_SECONDS:.0f} s"
    except (IndexError, ValueError):
        lines = joined.stderr.strip().splitlines()
        result = f"Ray ended with status {joined.returncode}" + (f", {lines[-1]}" if lines else "")
    if isinstance(result, str):
        raise EngineError(
            f"{where} cannot be joined: {' '.join(result.split()).rstrip('.:')}; "
            "check that it is running and that this machine is one of its nodes"
        )
    nodes = [(node.get("CPU", 0), node.get("GPU", 0)) for node in result if node]
    if not any(cpus >= settings.client_cpus and gpus >= settings.ray.client_gpus for cpus, gpus in nodes):
        raise EngineError(
            f"no node of {where} has the resources for a client with client-cpus={settings.client_cpus} and "
            f"ray.client-gpus={settings.ray.client_gpus:g}; they have "
            + ", ".join(f"{cpus:g} CPU cores and {gpus:g} GPUs" for cpus, gpus in nodes)
        )


def _check_this_machine(settings: Settings) -> None:
    """Check that a client fits on this machine.

    Raises:
        EngineError: a client reserves more than this machine has.
    """
    # Ray would wait forever for resources that do not exist, and start no client.
    for key, wanted, available, what in (
        ("client-cpus", settings.client_cpus, os.cpu_count() or 1, "CPU cores"),
        ("ray.client-gpus", settings.ray.client_gpus, torch.cuda.device_count(), "CUDA devices"),
    ):
        if wanted > available:
            raise EngineError(
                f"{key} is {wanted:g} but the number of {what} on this machine is {available}; set {key}={available} "
                "or less"
            )
