"""The commands that start Flower's SuperLink and SuperNode, with the flags of the installed version."""

import ipaddress
import json
import sys
from importlib.metadata import version
from pathlib import Path

from fedmr_flwr.config.paths import KINDS, kind_and_path, user_path
from fedmr_flwr.deployment.folders import AUTHORITY, CERTIFICATE, NODE_KEY, SERVER_KEY, NodeSettings, ServerSettings
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.files import write_aside, writing
from fedmr_flwr.wire.flower import access
from fedmr_flwr.wire.flower.commands import PIN
from fedmr_flwr.wire.flower.environment import node_environment, server_environment

# The name in Flower's configuration of the SuperLink that `fedmr deploy server` starts.
SUPERLINK = "deployment"
# The folder of Flower's configuration, and of the secrets, in the folder of a server or node.
_HOME = "flower"
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
        *access.options(folder / _HOME), "--disable-runtime-dependency-installation",
        "--database", str(folder / "state.db"),
    ]  # fmt: skip
    # Nodes need this port only from Flower 1.40.
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
        raise ConfigError(
            f"{folder / 'node.yaml'} has no data; set data to this node's npz file, to one of "
            f"{', '.join(f'{kind}:PATH' for kind in KINDS)}, or to the data folder"
        )
    if insecure and not _loopback(node.superlink):
        raise ConfigError(
            f"--insecure is only for one machine, but superlink is {node.superlink} in node.yaml; set it to 127.0.0.1"
        )
    own = {
        "partition-id": node.client,
        "name": node.name,
        "data": _data(folder, node.data),
        "device": node.device,
        "state": str((folder / user_path(node.state)).absolute()),
        "role": node.role,
    }
    if node.sealing_key:
        own["sealing-key"] = str((folder / user_path(node.sealing_key)).absolute())
    if node.app_sha256:
        own["app-sha256"] = node.app_sha256
    given = {key: json.dumps(value, ensure_ascii=False) for key, value in own.items()}
    # Flower splits this argument itself, without support for escapes.
    if wrong := [value for key, value in own.items() if given[key] not in (str(value), f'"{value}"')]:
        raise ConfigError(
            f"{folder / 'node.yaml'}: Flower cannot parse {wrong[0]!r}; remove quotes, backslashes and control "
            "characters"
        )
    command = [
        sys.executable, "-m", "fedmr_flwr.wire.flower.supernode",
        *([PIN, node.app_sha256] if node.app_sha256 else []),
        "--superlink", f"{_bracketed(node.superlink)}:{node.fleet_port if over_grpc() else node.port}",
        "--port", str(node.local_port), *access.options(folder / _HOME),
        "--node-config", " ".join(f"{key}={value}" for key, value in given.items()),
    ]  # fmt: skip
    if insecure:
        return [*command, "--insecure"]
    secure = ["--root-certificates", str(folder / AUTHORITY), "--auth-supernode-private-key", str(folder / NODE_KEY)]
    return command + secure


def superlink_executor(folder: Path, server: ServerSettings, superlink: int, insecure: bool = False) -> list[str]:
    """Return the command that starts what starts the server of each run.

    Args:
        folder: of the server.
        server: its settings.
        superlink: the process of the SuperLink.
        insecure: without TLS.
    """
    trust = ["--insecure"] if insecure else ["--root-certificates", str(folder / AUTHORITY)]
    return access.superexec(folder / _HOME, _control_address(server), trust, superlink)


def supernode_executor(folder: Path, node: NodeSettings, supernode: int) -> list[str]:
    """Return the command that starts what starts a node's clients.

    Args:
        folder: of the node.
        node: its settings.
        supernode: the process of the SuperNode.
    """
    return access.superexec(folder / _HOME, f"127.0.0.1:{node.local_port}", ["--insecure"], supernode, clients=True)


def configuration(folder: Path, server: ServerSettings, insecure: bool = False) -> str:
    """Return Flower's configuration for commands on the server's own machine.

    Args:
        folder: of the server.
        server: its settings.
        insecure: without TLS.
    """
    trust = "insecure = true" if insecure else f"root-certificates = {json.dumps(str(folder / AUTHORITY))}"
    return (
        f'[superlink]\ndefault = "{SUPERLINK}"\n\n'
        f'[superlink.{SUPERLINK}]\naddress = "{_control_address(server)}"\n{trust}\n'
    )


def configure_server(folder: Path, server: ServerSettings, insecure: bool = False) -> dict[str, str]:
    """Write Flower's configuration and secrets to a server's folder, and return the environment for its commands."""
    home = _create_home(folder)
    write_aside(home / "config.toml", configuration(folder, server, insecure).encode())
    access.create(home, _control_address(server))
    return server_environment(home)


def configure_node(folder: Path) -> dict[str, str]:
    """Write the secret of a node's processes to its folder, and return their environment."""
    home = _create_home(folder)
    access.create_key(home)
    return node_environment(home)


def _create_home(folder: Path) -> Path:
    home = folder / _HOME
    with writing(home):
        home.mkdir(mode=0o700, exist_ok=True)
        home.chmod(0o700)  # one that an earlier version made
    return home


def _control_host(server: ServerSettings) -> str:
    """Return the address on which the SuperLink listens for commands, runs and its own processes."""
    # Up to Flower 1.39 nodes have a port of their own, so this one need not be reachable for them.
    return "127.0.0.1" if over_grpc() else server.listen


def control_endpoint(server: ServerSettings) -> tuple[str, int]:
    """Return the host and port for commands from the server's own machine."""
    host = _control_host(server)
    return "127.0.0.1" if host in _EVERYWHERE else host, server.port


def _control_address(server: ServerSettings) -> str:
    host, port = control_endpoint(server)
    return f"{_bracketed(host)}:{port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _data(folder: Path, data: str) -> str:
    """Return a node's data, "KIND:PATH" or a path, with an absolute path; a relative one is in the node's folder."""
    kind, path = kind_and_path(data)
    if kind == "hf" and not (folder / user_path(path)).is_dir():
        return data  # the name of a data set in the cache of Hugging Face
    absolute = str((folder / user_path(path)).absolute())
    return f"{kind}:{absolute}" if kind else absolute
