"""Flower's SuperLink, models in memory: `python -m fedmr_flwr.wire.flower.superlink ARGUMENTS-OF-FLOWER-SUPERLINK`.

With `--database` Flower keeps runs and registered nodes on disk, which a SuperLink needs when it is restarted
after a crash. It also keeps all messages there, which are useless then, because their runs have ended; and writing
models to SQLite and reading them takes longer than sending them.
"""

from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink import config_loader
from flwr.superlink.cli import flower_superlink


def apply() -> None:
    """Replace the store of messages with the one that Flower uses without `--database`."""
    vars(config_loader)["ObjectStoreFactory"] = lambda _database: ObjectStoreFactory()


def main() -> None:
    """Run `flower-superlink`."""
    apply()
    flower_superlink()


if __name__ == "__main__":
    main()
