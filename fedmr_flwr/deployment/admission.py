"""The admission of nodes by a SuperLink: only those with public keys in its folder."""

import json
from pathlib import Path
from typing import NamedTuple

from fedmr_flwr.deployment.commands import SUPERLINK
from fedmr_flwr.errors import EngineError
from fedmr_flwr.files import reading, write_aside
from fedmr_flwr.wire.flower.commands import Connection


class Admission(NamedTuple):
    """Numbers of nodes: admitted, newly admitted, and revoked."""

    admitted: int
    new: int
    revoked: int


def admit(folder: Path, env: dict[str, str]) -> Admission:
    """Register the public keys in `nodes/`, and revoke registered keys that are no longer there.

    Args:
        folder: of the server; its `registered.json` has Flower's identifier of each key.
        env: of the server's commands.

    Raises:
        EngineError: a file cannot be read, or the SuperLink rejects a key.
    """
    connection, path = Connection(SUPERLINK, env), folder / "registered.json"
    registered, keys = _read_registered(path), _read_keys(folder / "nodes")
    # The SuperLink's database remembers keys; the folder is what the operator sees and changes.
    removed = registered.keys() - keys.keys()
    for key in removed:
        _revoke(connection, registered[key])
    # One command, where registering all keys again would take a second for each.
    known = _registered(connection) if registered else set()
    missing = {key: file for key, file in keys.items() if registered.get(key) not in known}
    identifiers = {key: _register(connection, file) for key, file in missing.items()}
    # Flower does not return the identifier of a key that is already registered.
    kept = {key: identifiers.get(key) or registered.get(key, "") for key in keys}
    write_aside(path, json.dumps(kept, indent=1).encode())
    return Admission(len(keys), sum(map(bool, identifiers.values())), len(removed))


def _read_registered(path: Path) -> dict[str, str]:
    """Return Flower's identifier of each key that was registered."""
    if not path.exists():
        return {}
    # Without it nobody knows which of the keys that the database admits are no longer in `nodes/`.
    with reading(path, EngineError, "remove it and state.db, which makes the SuperLink forget all nodes"):
        return {str(key): str(identifier) for key, identifier in json.loads(path.read_text("utf-8")).items()}


def _read_keys(nodes: Path) -> dict[str, Path]:
    """Return the file of each public key.

    Raises:
        EngineError: one cannot be read, or is that of two nodes.
    """
    keys: dict[str, Path] = {}
    with reading(nodes, EngineError, "it must have the .pub of each node"):
        files = sorted(path for path in nodes.iterdir() if path.suffix == ".pub")
    for file in files:
        with reading(file, EngineError, "remove it, or replace it by the node's own"):
            key = file.read_text(encoding="ascii").strip()
        if key in keys:
            raise EngineError(f"{keys[key]} and {file} have the same key; each node needs one of its own")
        keys[key] = file
    return keys


def _registered(connection: Connection) -> set[str]:
    """Return Flower's identifiers of all keys that the SuperLink admits."""
    nodes = connection.command("supernode", "list", SUPERLINK)["nodes"]
    return {str(node["node-id"]) for node in nodes if node["status"] != "unregistered"}


def _register(connection: Connection, key: Path) -> str:
    """Register a key; return Flower's identifier, "" if it is already registered."""
    try:
        output = connection.command("supernode", "register", str(key), SUPERLINK, "--name", key.stem)
    except EngineError as error:
        if "already" in str(error).lower():
            return ""
        raise EngineError(f"the SuperLink did not register {key}: {error}") from None
    return str(output["node-id"])


def _revoke(connection: Connection, identifier: str) -> None:
    try:
        connection.command("supernode", "unregister", identifier, SUPERLINK)
    except EngineError as error:
        if "not found" not in str(error).lower():  # it is not found in a new database
            raise EngineError(
                f"the SuperLink still admits node {identifier or 'without identifier'}, although its key was removed "
                f"from nodes/: {error}; remove state.db, which makes the SuperLink forget all nodes"
            ) from None
