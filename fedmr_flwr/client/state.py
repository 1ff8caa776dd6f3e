"""The state of a client between rounds, such as SCAFFOLD's variates: a file for each round on its own disk."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import safe_open

from fedmr_flwr.files import hash_tensors, write_tensors, writing

StateArrays = Mapping[str, NDArray[Any]]

_SHA256 = "sha256"
_NAME = re.compile(r"round-(\d{6,18})\.safetensors")


class ClientState:
    """The state of one client on disk.

    A message states the round of the client's last good reply, and the file of that round is the state. So a reply
    that was lost counts for neither side, and a run that is resumed from a checkpoint uses the state of that time.

    Args:
        folder: of this client alone; created when something is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def recall(self, last_round: int) -> StateArrays | None:
        """Return the state of a round; empty for round 0, None if it is missing or damaged."""
        if not last_round:
            return {}
        try:
            with safe_open(self._path(last_round), "np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is not a mapping
                expected = (file.metadata() or {}).get(_SHA256)
        except Exception:  # a damaged file raises many kinds of errors
            return None
        # A damaged file counts as lost: training with it would silently give another model.
        return arrays if hash_tensors(arrays) == expected else None

    def keep(self, arrays: StateArrays, server_round: int, last_round: int, resumable: int) -> None:
        """Write the state of a round atomically, and remove files that will never be read again.

        Args:
            arrays: the state.
            server_round: the round.
            last_round: of the client's last good reply before it, 0 for none.
            resumable: the oldest round from whose checkpoint the run may still be resumed.

        Raises:
            RunFolderError: it cannot be written.
        """
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        write_tensors(self._path(server_round), arrays, {_SHA256: hash_tensors(arrays)})
        # Replies between the last good one and this round were rejected. Of the others, a server that is resumed
        # after round `resumable` needs the newest of that time, also if it has reset all clients since.
        names = [_NAME.fullmatch(path.name) for path in self._folder.iterdir()]
        rounds = sorted(int(name[1]) for name in names if name)
        counted = [kept for kept in rounds if kept <= min(last_round, resumable)]
        with writing(self._folder):
            for kept in rounds:
                rejected = last_round < kept < server_round and (last_round or kept > resumable)
                if rejected or kept in counted[:-1]:
                    self._path(kept).unlink(missing_ok=True)

    def _path(self, server_round: int) -> Path:
        return self._folder / f"round-{server_round:06d}.safetensors"
