"""What a run keeps between rounds, compared with the memory and the disk of its machine before it begins."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from fedmr_flwr.config.settings import Settings
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.runs import checkpoint
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.training.rules import local_rule
from fedmr_flwr.wire.strategy import ServerStrategy

# The state itself, and the two copies of it that safetensors makes while a checkpoint is written.
_IN_MEMORY = 3
# The share of the machine's memory or disk from which the user is told.
_SAID = 0.1


def check(settings: Settings, strategy: ServerStrategy[Any], layout: Layout) -> list[str]:
    """Compare what a run will keep with what the machine has.

    Args:
        settings: of the run, with its folder, if it is known.
        strategy: of the run.
        layout: of the model.

    Returns:
        A line for the user, if it is much.

    Raises:
        ConfigError: it is more than the machine has.
    """
    state = strategy.state_bytes(_participants(settings))
    needs = [("memory", "on the server", _IN_MEMORY * state, memory())]
    if settings.run_dir is not None:
        # While a checkpoint is written, those that are kept are still there.
        checkpoints = (checkpoint.KEPT + 1) * (state + layout.nbytes)
        out = RunFolder(settings.run_dir)
        free = shutil.disk_usage(_existing(out.path)).free + _used((out.checkpoints, out.client_state))
        needs.append(("disk", "in the run folder", checkpoints + _client_bytes(settings, layout), free))
    name = settings.strategy.name
    sooner = ", a lower checkpoint-every" if local_rule(settings.strategy).keeps else ""
    less = f"choose a smaller model, fewer clients or models{sooner} or another strategy"
    for what, where, need, has in needs:
        if need > has:
            raise ConfigError(
                f"strategy.name: what {name} keeps between rounds will need up to {_format(need)} of {what} {where}, "
                f"which has {_format(has)}; {less}"
            )
    large = [f"{_format(need)} of {what} {where}" for what, where, need, has in needs if need > _SAID * has]
    if not large:
        return []
    return [f"what {name} keeps between rounds will need up to {' and '.join(large)}; if that is too much, {less}"]


def memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process may use: the machine's, or fewer in a container.

    Args:
        root: of the file system with /proc and /sys.
    """
    limits = [psutil.virtual_memory().total]
    groups = root / "proc" / "self" / "cgroup"
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, kinds, path = line.split(":", 2)
        # Version 2 of control groups has one tree, without a name; version 1 has one for each resource.
        if kinds and "memory" not in kinds.split(","):
            continue
        top = root / "sys" / "fs" / "cgroup" / ("memory" if kinds else "")
        file = "memory.limit_in_bytes" if kinds else "memory.max"
        # A group has the limits of all above it; inside a container its own path may not exist.
        place = top / path.lstrip("/")
        for folder in (place, *place.parents):
            if folder.is_relative_to(top) and (folder / file).is_file():
                text = (folder / file).read_text().strip()
                limits += [int(text)] if text.isdigit() else []  # or "max"
    return min(limits)


def _participants(settings: Settings) -> int:
    """Return how many clients can have taken part at the end of a run."""
    return min(settings.clients, settings.clients_per_round * settings.rounds)


def _client_bytes(settings: Settings, layout: Layout) -> int:
    """Return what the clients of a simulation keep in the run folder; nodes keep theirs themselves."""
    kept = local_rule(settings.strategy).kept_bytes(layout)
    if settings.engine == "deployment" or not kept:
        return 0
    # A file for each client, and those of the rounds since the oldest checkpoint, to which a run may return.
    since = settings.clients_per_round * checkpoint.KEPT * settings.checkpoint_every
    files = min(settings.clients_per_round * settings.rounds, settings.clients + since)
    return files * kept


def _existing(path: Path) -> Path:
    """Return the innermost folder above a path that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _used(folders: Sequence[Path]) -> int:
    """Return the bytes of all files in some folders, from an earlier part of the run."""
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def _format(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
