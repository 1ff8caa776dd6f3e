"""Looking for pieces of models in the memory of processes and in files."""

import re
from contextlib import suppress
from pathlib import Path

import numpy as np

# Bytes of a window, and of what is read at a time.
WINDOW, _BLOCK = 32, 1 << 20
_BITS = 24
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Windows:
    """The windows of some tensors, one after another: any 63 bytes of a tensor contain a whole one.

    Args:
        tensors: to look for.
        known: whose windows do not count, such as those of the initial model.
    """

    def __init__(self, tensors, known=()):
        self._windows = set().union(*map(_cut, tensors)) - set().union(*map(_cut, known))
        # Zeros and the like are everywhere.
        self._windows = {window for window in self._windows if len(set(window)) > 8}
        words = np.array([np.frombuffer(window[:16], np.uint64) for window in self._windows])
        self._tables = [np.zeros(1 << _BITS, bool) for _ in range(2)]
        for table, column in zip(self._tables, words.T, strict=True):
            table[_hash(column)] = True

    def __len__(self):
        return len(self._windows)

    def found_in(self, content):
        """Return how many windows are in these bytes, at any place."""
        found = set()
        for shift in range(8):
            words = np.frombuffer(content[shift : shift + (len(content) - shift) // 8 * 8], np.uint64)
            at = np.flatnonzero(self._tables[0][_hash(words)])
            at = at[at + 1 < len(words)]
            at = at[self._tables[1][_hash(words[at + 1])]]
            for place in (8 * at + shift).tolist():
                found |= {content[place : place + WINDOW]} & self._windows
        return len(found)

    def in_files(self, folder):
        """Return the files below a folder that contain windows."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)) for path in files if self.found_in(path.read_bytes())}


def memory_of(process):
    """Return what a process has written to its memory, which is stopped while this is read."""
    blocks, facts = [], Path("/proc", str(process.pid))
    process.suspend()
    try:
        with (facts / "mem").open("rb", 0) as memory:
            for line in (facts / "maps").read_text().splitlines():
                start, end, rights = re.match(r"(\w+)-(\w+) (\S+)", line).groups()
                if "w" not in rights:
                    continue
                for at in range(int(start, 16), int(end, 16), _BLOCK - WINDOW):
                    with suppress(OSError):
                        memory.seek(at)
                        block = memory.read(min(_BLOCK, int(end, 16) - at))
                        blocks += [block] if np.frombuffer(block, np.uint8).any() else []
    finally:
        process.resume()
    return blocks


def _cut(tensor):
    content = np.ascontiguousarray(tensor).tobytes()
    return {content[at : at + WINDOW] for at in range(0, len(content) - WINDOW + 1, WINDOW)}


def _hash(words):
    return ((words * _FACTOR) >> np.uint64(64 - _BITS)).astype(np.int64)
