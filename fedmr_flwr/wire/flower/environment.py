"""The environment of Flower's processes: every variable that is set for them, and why."""

import os
import sys
from pathlib import Path

# Where Flower keeps its configuration, and what it reads to find it.
HOME = "FLWR_HOME"
# On which Flower's commands look for the SuperLink called "local".
CONTROL_PORT, HTTP_PORT = "FLWR_LOCAL_CONTROL_API_PORT", "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"
# What Ray is to join.
RAY_ADDRESS = "RAY_ADDRESS"
_POLL_INTERVAL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"


def environment(home: Path | None = None) -> dict[str, str]:
    """Return the environment of Flower's commands and SuperNodes.

    Args:
        home: where Flower's configuration is; as in this process's environment if not given.
    """
    return os.environ | {
        # Nothing is reported to Flower's makers, and no command waits for the network.
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        # Flower would install the app's dependencies for each run: a minute, 5.6 GB, and perhaps another PyTorch.
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        # A process that is killed leaves all that it printed in the log.
        "PYTHONUNBUFFERED": "1",
        # Seconds between looks for a task that needs a new process; a second if nobody says otherwise.
        _POLL_INTERVAL: "0.1",
        # Flower starts its parts by name.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        **({HOME: str(home)} if home else {}),
    }


def server_environment(home: Path) -> dict[str, str]:
    """Return the environment of a deployment's SuperLink.

    Args:
        home: where its configuration is.
    """
    return environment(home) | {
        # Only the start of a run waits for this look, which costs a tenth of a processor at the other interval.
        _POLL_INTERVAL: "1",
    }


def simulation_environment(home: Path, app: Path, ray_address: str, ports: tuple[int, int]) -> dict[str, str]:
    """Return the environment of a simulation's SuperLink, and of the commands that talk to it.

    Args:
        home: a folder of its own.
        app: the folder of the Flower app.
        ray_address: what Ray is to join; "local" for a Ray of its own.
        ports: where the SuperLink takes commands, and where its processes talk to it.
    """
    local = filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1", "localhost"])
    no_proxy = ",".join(local)
    return environment(home) | {
        # So that `flwr` finds this SuperLink, and no run of another project ends up in it.
        CONTROL_PORT: str(ports[0]),
        HTTP_PORT: str(ports[1]),
        # Never left out: without it Ray joins whatever cluster `ray start` left on this machine.
        RAY_ADDRESS: ray_address,
        # Ray hands Python's path on, so that actors on other machines find the app, too.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(app), os.environ.get("PYTHONPATH")])),
        # Large messages in huge pages: serialising a large population takes a third of the time.
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
        # No proxy reaches this machine's own ports.
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }
