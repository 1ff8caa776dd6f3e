"""The only source of randomness: independent streams that are named, never shared."""

import hashlib
import json

import numpy as np


def stream(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """Return the random stream of one purpose.

    The stream depends on the arguments alone, not on what was drawn before, where or in which order.
    So a run does not depend on which process trained which client, and resuming needs no stored state.

    Args:
        seed: the seed of the run.
        purpose: what is drawn, for instance "select" or "train".
        *index: what it is drawn for, for instance a round and a client.

    Returns:
        A fresh generator; equal arguments give equal draws.
    """
    # Hashed, because NumPy's SeedSequence takes [1] and [1, 0] for the same entropy.
    name = json.dumps([int(seed), purpose, *map(int, index)]).encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest()[:16], "little"))
