"""The folders of a deployment: one for the server and one for each node, to be copied to their machines."""

import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field

from fedmr_flwr.config.sections import Section, validate_section
from fedmr_flwr.config.yaml_text import read_settings, write_yaml
from fedmr_flwr.deployment.certificates import Authority, node_keys
from fedmr_flwr.errors import ConfigError, RunFolderError
from fedmr_flwr.files import write_aside, write_private, writing
from fedmr_flwr.wire.sealing import new_key

S = TypeVar("S", bound=Section)

AUTHORITY, CERTIFICATE, SERVER_KEY, NODE_KEY = "ca.crt", "server.crt", "server.key", "node.key"
SEALING_KEY = "sealing.key"


def _is_host(text: str) -> str:
    # A wrong name would be noticed only when the nodes reject the certificate, or do not reach the server.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}", text) and not _is_address(text):
        raise ValueError("write the name or address of the server, without port")
    return text


_Host = Annotated[str, AfterValidator(_is_host)]
_Text = Annotated[str, Field(min_length=1)]


class ServerSettings(Section):
    """The settings of a server, server.yaml.

    Attributes:
        hosts: the names and addresses by which the nodes reach it.
        listen: the address on which it listens.
        fleet_port: for nodes with Flower up to 1.39, by gRPC.
        port: for `fedmr run`, and for nodes with Flower from 1.40, by HTTP.
    """

    hosts: list[_Host] = Field(min_length=1)
    listen: _Host = "0.0.0.0"
    fleet_port: int = Field(9092, ge=1, le=65535)
    port: int = Field(8000, ge=1, le=65535)


class NodeSettings(Section):
    """The settings of a node, node.yaml; the server cannot change them.

    Attributes:
        client: its number, counted from 0.
        name: for messages.
        superlink: the name or address of the server.
        fleet_port: see `ServerSettings`.
        port: see `ServerSettings`.
        local_port: for the node's own processes, on this machine only; different for each node on a machine.
        data: files with this node's examples, "KIND:PATH" or an npz file, or a folder with the files of the data set,
            of which the node uses its part.
        device: for training: auto, cpu, cuda or cuda:N.
        state: folder for its state between rounds.
        sealing_key: file with the key of all nodes, for runs with privacy.sealed.
        app_sha256: the SHA-256 of the only app that it runs, in hexadecimal digits, and with sealing-key in sealed
            runs alone; if not given, any.
        role: a client, which trains; or an evaluator, which scores the models of sealed runs on the test examples of
            its data, and whose number does not matter.
    """

    client: int = Field(ge=0)
    name: _Text
    superlink: _Host
    fleet_port: int = Field(9092, ge=1, le=65535)
    port: int = Field(8000, ge=1, le=65535)
    local_port: int = Field(9094, ge=1, le=65535)
    data: _Text | None = None
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    state: _Text = "state"
    sealing_key: _Text | None = None
    app_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    role: Literal["client", "evaluator"] = "client"


def create(folder: Path, hosts: Sequence[str], nodes: int) -> tuple[ServerSettings, list[NodeSettings]]:
    """Create the folders of a deployment with certificates, keys and settings.

    Args:
        folder: a new or empty one.
        hosts: the names and addresses by which the nodes reach the server; they use the first one.
        nodes: the number of nodes.

    Returns:
        The settings of the server and of the nodes.

    Raises:
        ConfigError: a host is not a valid name or address.
        RunFolderError: the folder is not empty, or cannot be written.
    """
    for host in hosts:
        try:
            _is_host(host)
        except ValueError as error:
            raise ConfigError(f"--host {host!r}: {error}") from None
    with writing(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunFolderError(f"{folder} is not empty, and keys are never overwritten; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "server").mkdir(mode=0o700)  # Flower's database in it is private, too
        (folder / "server" / "nodes").mkdir(mode=0o700)
    authority = Authority(f"fedmr_flwr {hosts[0]}"[:64])
    certificate, key = authority.issue(hosts)
    server = folder / "server"
    write_aside(server / AUTHORITY, authority.certificate)
    write_aside(server / CERTIFICATE, certificate)
    write_private(server / SERVER_KEY, key)
    own = ServerSettings(hosts=list(hosts))
    _write(server / "server.yaml", own)
    # One for all nodes, and none for the server.
    sealing = new_key().encode()
    return own, [_create_node(folder, number, hosts[0], authority, sealing) for number in range(nodes)]


def _create_node(folder: Path, number: int, superlink: str, authority: Authority, sealing: bytes) -> NodeSettings:
    path = folder / f"node-{number}"
    with writing(path):
        path.mkdir(mode=0o700)
    public, private = node_keys()
    # Only the public key stays with the server: with the private one it could pretend to be the node.
    write_aside(folder / "server" / "nodes" / f"node-{number}.pub", public)
    write_aside(path / AUTHORITY, authority.certificate)
    write_private(path / NODE_KEY, private)
    write_private(path / SEALING_KEY, sealing)
    node = NodeSettings(
        client=number,
        name=f"node-{number}",
        superlink=superlink,
        local_port=9094 + number,  # different ones, so that several nodes can share a machine
        sealing_key=SEALING_KEY,
    )
    _write(path / "node.yaml", node)
    return node


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def read_server(folder: Path) -> ServerSettings:
    """Read a server's settings.

    Raises:
        ConfigError: they are missing or wrong.
    """
    return _read(folder / "server.yaml", ServerSettings)


def read_node(folder: Path) -> NodeSettings:
    """Read a node's settings.

    Raises:
        ConfigError: they are missing or wrong.
    """
    return _read(folder / "node.yaml", NodeSettings)


def _write(path: Path, settings: Section) -> None:
    # In the order of the fields, because people read and edit these files.
    write_aside(path, write_yaml(settings.model_dump(mode="json", by_alias=True)).encode())


def _read(path: Path, kind: type[S]) -> S:
    what = "server" if kind is ServerSettings else "node"
    if not path.is_file():
        raise ConfigError(
            f"{path.parent} is not a {what}'s folder: it has no {path.name}; create one with `fedmr deploy init`"
        )
    return validate_section(kind, read_settings(path), str(path))
