"""What a client keeps between rounds, such as SCAFFOLD's variates: a file for each round on its own disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fedmr_flwr.files import hash_tensors, write_tensors, writing

StateArrays = Mapping[str, NDArray[Any]]

_DIGEST = "sha256"


class ClientState:
    """The state of one client on disk.

    A message names the round of the client's last good reply, and that round's file is the state. So a reply that got
    lost counts for neither side, and a run that is resumed from a checkpoint finds the state of that time.

    Args:
        folder: of this client alone; made when something is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def recall(self, last_round: int) -> StateArrays | None:
        """Return what was kept in a round; empty for round 0, None if it is missing or damaged."""
        if not last_round:
            return {}
        try:
            with safe_open(self._path(last_round), "np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
                expected = (file.metadata() or {}).get(_DIGEST)
        except (OSError, SafetensorError):
            return None
        return arrays if hash_tensors(arrays) == expected else None

    def keep(self, arrays: StateArrays, server_round: int, last_round: int, resumable: int) -> None:
        """Write the state of a round, whole or not at all, and remove files that will never be read again.

        Args:
            arrays: what to keep.
            server_round: the round.
            last_round: of the client's last good reply before it, 0 for none.
            resumable: the oldest round from whose checkpoint the run may still be resumed.

        Raises:
            RunFolderError: it cannot be written.
        """
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        write_tensors(self._path(server_round), arrays, {_DIGEST: hash_tensors(arrays)})
        # Replies between the last good one and this round never counted. Of the others, a server that is resumed
        # after round `resumable` asks for the newest of that time.
        rounds = sorted(int(path.stem.removeprefix("round-")) for path in self._folder.glob("round-*.safetensors"))
        counted = [kept for kept in rounds if kept <= min(last_round, resumable)]
        with writing(self._folder):
            for kept in rounds:
                if last_round < kept < server_round or kept in counted[:-1]:
                    self._path(kept).unlink(missing_ok=True)

    def _path(self, server_round: int) -> Path:
        return self._folder / f"round-{server_round:06d}.safetensors"
