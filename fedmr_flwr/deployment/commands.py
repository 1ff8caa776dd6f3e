"""The commands that start Flower's SuperLink and SuperNode, with the flags of the installed version."""

import ipaddress
import json
import sys
from importlib.metadata import version
from pathlib import Path

from fedmr_flwr.deployment.folders import AUTHORITY, CERTIFICATE, NODE_KEY, SERVER_KEY, NodeSettings, ServerSettings
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.files import write_aside, writing
from fedmr_flwr.wire.flower.environment import server_environment

# The name in Flower's configuration of the SuperLink that `fedmr deploy server` starts.
SUPERLINK = "deployment"
_EVERYWHERE = ("0.0.0.0", "::")


def over_grpc() -> bool:
    """Return whether the installed Flower's nodes connect by gRPC (up to 1.39) or by HTTP (from 1.40)."""
    major, minor = (int(number) for number in version("flwr").split(".")[:2])
    return (major, minor) < (1, 40)


def superlink(folder: Path, server: ServerSettings, insecure: bool = False) -> list[str]:
    """Return the command that starts a SuperLink.

    Args:
        folder: of the server.
        server: its settings.
        insecure: without TLS and keys, on this machine only.

    Raises:
        ConfigError: it would be reachable from other machines without TLS.
    """
    if not over_grpc() and not _loopback(server.listen) and server.listen not in {*_EVERYWHERE, *server.hosts}:
        raise ConfigError(
            f"listen is {server.listen} in server.yaml, but the certificate is not valid for it; use 0.0.0.0, "
            f"127.0.0.1 or one of {', '.join(server.hosts)}"
        )
    if insecure and not _loopback(server.listen):
        raise ConfigError(
            f"--insecure is only for one machine, but listen is {server.listen} in server.yaml; set it to 127.0.0.1"
        )
    command = [
        sys.executable, "-m", "fedmr_flwr.wire.flower.superlink",
        "--isolation", "subprocess", "--disable-runtime-dependency-installation",
        "--database", str(folder / "state.db"),
    ]  # fmt: skip
    # Anyone who reaches this port can submit runs and admit nodes; nodes need it only from Flower 1.40.
    command += ["--host", _control_host(server), "--port", str(server.port)]
    if over_grpc():
        command += ["--fleet-api-address", f"{_bracketed(server.listen)}:{server.fleet_port}"]
    if insecure:
        return [*command, "--insecure"]
    return [
        *command,
        "--ssl-ca-certfile", str(folder / AUTHORITY),
        "--ssl-certfile", str(folder / CERTIFICATE),
        "--ssl-keyfile", str(folder / SERVER_KEY),
        "--enable-supernode-auth",
    ]  # fmt: skip


def supernode(folder: Path, node: NodeSettings, insecure: bool = False) -> list[str]:
    """Return the command that starts a SuperNode.

    Args:
        folder: of the node.
        node: its settings, with `data`.
        insecure: without TLS and keys, to a server on this machine only.

    Raises:
        ConfigError: it has no data, or it would connect to another machine without TLS.
    """
    if node.data is None:
        raise ConfigError(f"{folder / 'node.yaml'} has no data; set data to this node's npz file or data folder")
    if insecure and not _loopback(node.superlink):
        raise ConfigError(
            f"--insecure is only for one machine, but superlink is {node.superlink} in node.yaml; set it to 127.0.0.1"
        )
    # Flower splits this argument itself, without support for escapes.
    if wrong := [text for text in (node.data, node.state, node.name) if '"' in text or "\\" in text]:
        raise ConfigError(f"{folder / 'node.yaml'}: Flower cannot parse {wrong[0]!r}; remove quotes and backslashes")
    own = {
        "partition-id": node.client,
        "name": node.name,
        "data": str((folder / Path(node.data).expanduser()).absolute()),
        "device": node.device,
        "state": str((folder / Path(node.state).expanduser()).absolute()),
    }
    command = [
        sys.executable, "-m", "fedmr_flwr.wire.flower.supernode",
        "--superlink", f"{_bracketed(node.superlink)}:{node.fleet_port if over_grpc() else node.port}",
        "--port", str(node.local_port),
        "--node-config", " ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in own.items()),
    ]  # fmt: skip
    if insecure:
        return [*command, "--insecure"]
    secure = ["--root-certificates", str(folder / AUTHORITY), "--auth-supernode-private-key", str(folder / NODE_KEY)]
    return command + secure


def configuration(folder: Path, server: ServerSettings, insecure: bool = False) -> str:
    """Return Flower's configuration for commands on the server's own machine.

    Args:
        folder: of the server.
        server: its settings.
        insecure: without TLS.
    """
    host = _control_host(server)
    address = "127.0.0.1" if host in _EVERYWHERE else _bracketed(host)
    trust = "insecure = true" if insecure else f"root-certificates = {json.dumps(str(folder / AUTHORITY))}"
    return (
        f'[superlink]\ndefault = "{SUPERLINK}"\n\n'
        f'[superlink.{SUPERLINK}]\naddress = "{address}:{server.port}"\n{trust}\n'
    )


def configure(folder: Path, server: ServerSettings, insecure: bool = False) -> dict[str, str]:
    """Write Flower's configuration to a server's folder, and return the environment for its commands."""
    home = folder / "flower"
    with writing(home):
        home.mkdir(exist_ok=True)
    write_aside(home / "config.toml", configuration(folder, server, insecure).encode())
    return server_environment(home)


def _control_host(server: ServerSettings) -> str:
    """Return the address on which the SuperLink listens for commands, runs and its own processes."""
    # It requires no key. Up to Flower 1.39 nodes have a port of their own, so this one need not be reachable for
    # them.
    return "127.0.0.1" if over_grpc() else server.listen


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
