"""Flower's SuperLink: `python -m fedmr_flwr.wire.flower.superlink ARGUMENTS-OF-FLOWER-SUPERLINK`.

Models are in memory: with `--database` Flower keeps runs and registered nodes on disk, which a SuperLink needs when
it is restarted after a crash. It also keeps all messages there, which are useless then, because their runs have
ended; and writing models to SQLite and reading them takes longer than sending them.

Commands need the token in its FLWR_HOME. Flower has accounts with tokens, but no plugin for them except in its
commercial edition.
"""

import hmac
import os
from collections.abc import Sequence
from pathlib import Path

from flwr.common.constant import ACCESS_TOKEN_KEY, AuthnType
from flwr.supercore.auth.typing import AccountInfo
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink import config_loader
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli import flower_superlink

from fedmr_flwr.wire.flower import access
from fedmr_flwr.wire.flower.environment import ACCOUNTS, HOME

Metadata = Sequence[tuple[str, str | bytes]]


class TokenPlugin(NoOpControlAuthnPlugin):
    """Knows one account, that of whoever sends a token from the SuperLink's FLWR_HOME."""

    def __init__(self) -> None:
        self._tokens = access.tokens(Path(os.environ[HOME]))

    def validate_tokens_in_metadata(self, metadata: Metadata) -> tuple[bool, AccountInfo | None]:
        """Return whether a command has a valid token, and its account."""
        sent = str(dict(metadata).get(ACCESS_TOKEN_KEY, "")).encode()
        if any(hmac.compare_digest(sent, token.encode()) for token in self._tokens):
            return super().validate_tokens_in_metadata(metadata)
        return False, None

    def refresh_tokens(self, metadata: Metadata) -> tuple[Metadata | None, AccountInfo | None]:
        """Refuse to renew tokens, which do not expire."""
        return None, None


def apply() -> None:
    """Replace the store of messages with the one that Flower uses without `--database`, and require tokens."""
    replaced = vars(config_loader)
    replaced["ObjectStoreFactory"] = lambda _database: ObjectStoreFactory()
    replaced["get_control_authn_plugins"] = lambda: {AuthnType.OIDC: TokenPlugin}
    os.environ[ACCOUNTS] = "1"


def main() -> None:
    """Run `flower-superlink`."""
    apply()
    flower_superlink()


if __name__ == "__main__":
    main()
