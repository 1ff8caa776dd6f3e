"""The admission of nodes by a SuperLink: only those with public keys in its folder."""

import json
from pathlib import Path
from typing import NamedTuple

from fedmr_flwr.deployment.commands import SUPERLINK
from fedmr_flwr.errors import EngineError
from fedmr_flwr.files import write_aside
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
        EngineError: the SuperLink rejects a key.
    """
    connection, path = Connection(SUPERLINK, env), folder / "registered.json"
    registered: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    keys = {key.read_text(encoding="ascii").strip(): key for key in sorted((folder / "nodes").glob("*.pub"))}
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
