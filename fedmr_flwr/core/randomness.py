"""The only source of randomness: independent streams, each with a name, none shared."""

import hashlib
import json

import numpy as np


def stream(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """Return the random stream of one purpose.

    The stream depends on the arguments alone, not on earlier draws, their order or the process. So a run does not
    depend on which process trained which client, and resuming needs no stored state.

    Args:
        seed: the seed of the run.
        purpose: the use of the stream, for instance "select" or "train".
        *index: further numbers that name it, for instance a round and a client.

    Returns:
        A fresh generator; equal arguments give equal draws.
    """
    # Hashed, because NumPy's SeedSequence gives [1] and [1, 0] the same stream.
    name = json.dumps([int(seed), purpose, *map(int, index)]).encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest()[:16], "little"))
