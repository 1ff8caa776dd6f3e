"""The secrets without which nobody on the same machine can command a SuperLink, or take its tasks or a node's.

Flower's local ports are open to every account of a machine. Both secrets are files in a folder that only its owner
can enter: a token that Flower's commands send, and a key with which a SuperExec signs its requests.
"""

import base64
import json
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from fedmr_flwr.files import writing

# The names under which Flower's commands look for a token, in the file that `flwr login` would write.
_CREDENTIALS = "credentials.yaml"
_KIND, _TOKEN, _REFRESH = (
    f"flower.account-auth.{{}}.{name}" for name in ("authn-type", "oidc-access-token", "oidc-refresh-token")
)
_KEY = "superexec.key"
# Not by the module's name: a forked process imports the main module of its parent, and with it `fedmr_flwr` in the
# version that is installed here instead of the version that was sent with the run.
_SUPEREXEC = "from fedmr_flwr.wire.flower import superexec; superexec.main({clients})"


def create(home: Path, address: str) -> None:
    """Write the secrets of a SuperLink, for it and for commands that use the same folder.

    Args:
        home: its FLWR_HOME, a private folder.
        address: at which the commands reach it.

    Raises:
        RunFolderError: they cannot be written.
    """
    token = next(iter(tokens(home)), None) or secrets.token_hex(32)  # another folder may have a copy of it
    entries = {_KIND: "oidc", _TOKEN: token, _REFRESH: token}
    text = json.dumps({name.format(address): _encode(value) for name, value in entries.items()})  # this is YAML, too
    _write(home / _CREDENTIALS, text.encode())
    create_key(home)


def create_key(home: Path) -> None:
    """Write the key of a SuperExec, a new one at each start.

    Args:
        home: a private folder.

    Raises:
        RunFolderError: it cannot be written.
    """
    _write(home / _KEY, secrets.token_bytes(32))


def tokens(home: Path) -> list[str]:
    """Return the tokens with which commands are accepted; none if there is no file of them."""
    try:
        entries = json.loads((home / _CREDENTIALS).read_text(encoding="ascii"))
        return [base64.b64decode(text).decode() for name, text in entries.items() if name.endswith("access-token")]
    except (FileNotFoundError, ValueError, TypeError, AttributeError):  # all but the first: it is another program's
        return []


def options(home: Path) -> list[str]:
    """Return the options with which a SuperLink or SuperNode gives tasks only to who has the key."""
    return ["--isolation", "process", "--superexec-auth-secret-file", str(home / _KEY)]


def superexec(home: Path, address: str, trust: Sequence[str], parent: int, clients: bool = False) -> list[str]:
    """Return the command of the SuperExec that starts the processes of a SuperLink or SuperNode.

    Args:
        home: with the key.
        address: of the SuperLink or SuperNode.
        trust: `--insecure`, or `--root-certificates` and a file.
        parent: the process that it serves, and with which it ends.
        clients: whether its processes are clients, forked from one process.
    """
    return [
        sys.executable, "-P", "-c", _SUPEREXEC.format(clients=clients), *trust, "--runtime-api-address", address,
        "--superexec-auth-secret-file", str(home / _KEY), "--parent-pid", str(parent),
    ]  # fmt: skip


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _write(path: Path, content: bytes) -> None:
    # Removed first: a file that exists would keep its mode.
    with writing(path):
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
