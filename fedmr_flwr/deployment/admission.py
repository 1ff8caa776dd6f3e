"""Which nodes a SuperLink admits: those whose public keys are in its folder, and no others."""

import json
from pathlib import Path
from typing import NamedTuple

from fedmr_flwr.deployment.commands import SUPERLINK
from fedmr_flwr.errors import EngineError
from fedmr_flwr.files import write_aside
from fedmr_flwr.wire.flower.commands import Connection


class Admission(NamedTuple):
    """Numbers of nodes: admitted, new among them, and revoked."""

    admitted: int
    new: int
    revoked: int


def admit(folder: Path, env: dict[str, str]) -> Admission:
    """Register the public keys in `nodes/`, and revoke those that were registered and are no longer there.

    Args:
        folder: of the server; `registered.json` in it remembers Flower's identifier of each key.
        env: of the server's commands.

    Raises:
        EngineError: the SuperLink refuses.
    """
    connection, path = Connection(SUPERLINK, env), folder / "registered.json"
    registered: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    keys = {key.read_text(encoding="ascii").strip(): key for key in sorted((folder / "nodes").glob("*.pub"))}
    gone = registered.keys() - keys.keys()
    for key in gone:
        _revoke(connection, registered[key])
    identifiers = {key: _register(connection, file) for key, file in keys.items()}
    # Flower does not give the identifier of a key that is registered already.
    kept = {key: new or registered.get(key, "") for key, new in identifiers.items()}
    write_aside(path, json.dumps(kept, indent=1).encode())
    return Admission(len(keys), sum(map(bool, identifiers.values())), len(gone))


def _register(connection: Connection, key: Path) -> str:
    """Register a key; return Flower's identifier, "" if it is registered already."""
    try:
        answer = connection.command("supernode", "register", str(key), SUPERLINK, "--name", key.stem)
    except EngineError as error:
        if "already" in str(error).lower():
            return ""
        raise EngineError(f"the SuperLink did not register {key}: {error}") from None
    return str(answer["node-id"])


def _revoke(connection: Connection, identifier: str) -> None:
    try:
        connection.command("supernode", "unregister", identifier, SUPERLINK)
    except EngineError as error:
        if "not found" not in str(error).lower():  # as in a new database
            raise EngineError(
                f"the SuperLink still admits node {identifier or 'without identifier'}, whose key was removed from "
                f"nodes/: {error}; remove state.db, which forgets all nodes"
            ) from None
