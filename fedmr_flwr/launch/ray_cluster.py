"""Which Ray a run uses, one of its own or a cluster to join; checked before anything is written."""

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
# Joins a cluster just as Flower will; a process of its own, because Ray takes over signals and threads.
_JOIN = """
import json, ray
try:
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    answer = [node["Resources"] for node in ray.nodes()]
except Exception as error:
    answer = str(error.__cause__ or error).partition("Traceback")[0]
print(json.dumps(answer))
"""


def address_of(settings: Settings) -> str:
    """Return what Ray is to join: the setting, else what the environment names, else "local", a Ray of its own.

    Raises:
        ConfigError: it does not have the form of an address.
    """
    name, address = "ray.address", settings.ray.address
    if address is None:
        name, address = RAY_ADDRESS, os.environ.get(RAY_ADDRESS) or "local"
    if address not in ("auto", "local") and not re.fullmatch(r"(\[[^\[\]\s]+\]|[^:/\[\]\s]+):\d{1,5}", address):
        raise ConfigError(f"{name} = {address!r}: write host:port as `ray start` prints it, auto or local")
    return address


def check(settings: Settings, address: str) -> None:
    """Find what is wrong with the Ray of a run.

    Args:
        settings: the run.
        address: what `address_of` returned.

    Raises:
        EngineError: it cannot be joined, or has no room for a client.
    """
    if address == "local":
        _check_this_machine(settings)
    else:
        _check_cluster(settings, address)


def _check_cluster(settings: Settings, address: str) -> None:
    """Join a Ray cluster and leave it again, so that what is wrong with it is found before anything is written.

    Raises:
        EngineError: it is not there, cannot be joined from here, or has no room for a client.
    """
    where = f"the Ray cluster at '{address}'"
    if address != "auto":  # Ray itself would try for minutes
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise EngineError(
                f"{where} does not answer ({error}); start it with `ray start`, or set ray.address=local"
            ) from None
    env = os.environ | {RAY_ADDRESS: address, "RAY_gcs_server_request_timeout_seconds": "10"}
    try:
        joined = subprocess.run(
            [sys.executable, "-c", _JOIN], env=env,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_JOIN_SECONDS, check=False,
        )  # fmt: skip
        answer = json.loads(joined.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        answer = f"no answer in {_JOIN_SECONDS:.0f} s"
    except (IndexError, ValueError):
        lines = joined.stderr.strip().splitlines()
        answer = f"Ray ended with status {joined.returncode}" + (f", {lines[-1]}" if lines else "")
    if isinstance(answer, str):
        raise EngineError(
            f"{where} cannot be joined: {' '.join(answer.split()).rstrip('.:')}; "
            "is it running, and this machine one of its nodes?"
        )
    nodes = [(node.get("CPU", 0), node.get("GPU", 0)) for node in answer if node]
    if not any(cpus >= settings.client_cpus and gpus >= settings.ray.client_gpus for cpus, gpus in nodes):
        raise EngineError(
            f"no node of {where} has room for a client with client-cpus={settings.client_cpus} and "
            f"ray.client-gpus={settings.ray.client_gpus:g}; they have "
            + ", ".join(f"{cpus:g} CPU cores and {gpus:g} GPUs" for cpus, gpus in nodes)
        )


def _check_this_machine(settings: Settings) -> None:
    """Refuse what Ray could never place here: it would start no client at all.

    Raises:
        EngineError: a client reserves more than this machine has.
    """
    for key, wanted, there, what in (
        ("client-cpus", settings.client_cpus, os.cpu_count() or 1, "CPU cores"),
        ("ray.client-gpus", settings.ray.client_gpus, torch.cuda.device_count(), "CUDA devices"),
    ):
        if wanted > there:
            raise EngineError(
                f"{key} is {wanted:g} but the number of {what} here is {there}; set {key}={there} or less"
            )
