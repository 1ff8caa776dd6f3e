"""The environment variables of Flower's processes, each with the reason."""

import os
import secrets
import sys
import tempfile
from pathlib import Path

# The folder of Flower's configuration.
HOME = "FLWR_HOME"
# The ports on which Flower's commands expect the SuperLink called "local".
CONTROL_PORT, HTTP_PORT = "FLWR_LOCAL_CONTROL_API_PORT", "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"
# The cluster that Ray joins.
RAY_ADDRESS = "RAY_ADDRESS"
# Whether commands to a SuperLink need a token.
ACCOUNTS = "FLWR_OIDC_ENABLED"
_POLL_INTERVAL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"


def environment(home: Path | None = None) -> dict[str, str]:
    """Return the environment of Flower's commands.

    Args:
        home: the folder of Flower's configuration; None: as in this process's environment.
    """
    return os.environ | {
        # No data are sent to Flower's developers, and no command waits for the network.
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        # Flower would install the app's dependencies for each run: a minute, 5.6 GB, and perhaps another PyTorch.
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        # The log then has all output of a process that was killed.
        "PYTHONUNBUFFERED": "1",
        # Flower starts its own programs by name.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        **({HOME: str(home)} if home else {}),
    }


def server_environment(home: Path) -> dict[str, str]:
    """Return the environment of a deployment's SuperLink.

    Args:
        home: the folder of its configuration.
    """
    return environment(home) | {
        # glibc would keep the memory of large messages for later ones, more of it with every size: a node that
        # uploads what nobody asked for would leave the server several times as large.
        "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    }


def node_environment(home: Path) -> dict[str, str]:
    """Return the environment of a deployment's node.

    Args:
        home: the folder of its configuration.
    """
    # Seconds between polls for a task that needs a new process. Flower's default is one second, for which every
    # message to a node would wait; ten polls in a second cost a twentieth of a processor. On a server only the start
    # of a run waits.
    return environment(home) | {_POLL_INTERVAL: "0.2"}


def simulation_environment(home: Path, path: str, ray_address: str, ports: tuple[int, int]) -> dict[str, str]:
    """Return the environment of a simulation's SuperLink and of the commands that use it.

    Args:
        home: a folder of its own.
        path: Python's, with which all processes find the app.
        ray_address: the Ray cluster to join; "local" for a Ray of its own.
        ports: of the SuperLink for commands, and for its own processes.
    """
    local = filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1", "localhost"])
    no_proxy = ",".join(local)
    compiled = Path(tempfile.gettempdir(), f"torchinductor_uid_{os.getuid()}")  # by `torch.compile`, for later runs
    return environment(home) | {
        # `flwr` then finds this SuperLink, and no run of another project is submitted to it.
        CONTROL_PORT: str(ports[0]),
        HTTP_PORT: str(ports[1]),
        # Never left out: without it Ray joins any cluster that `ray start` has started on this machine.
        RAY_ADDRESS: ray_address,
        # Ray's ports are open to every account of the machine, and run any code; a cluster has its own rule.
        **({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)} if ray_address == "local" else {}),
        # What Ray, PyTorch and this package would set themselves while Ray's threads read the environment: a new
        # variable moves it in memory, and now and then ends the process by a segmentation fault (Ray's issue 62028).
        "RAY_CLIENT_MODE": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONBREAKPOINT": "ray.util.rpdb._driver_set_trace",
        "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(compiled)),
        # Ray passes Python's path on, so that actors on other machines find the app, too.
        "PYTHONPATH": path,
        # Large messages in huge pages: serialising a large population takes a third of the time.
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
        # A proxy cannot reach this machine's own ports.
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }
