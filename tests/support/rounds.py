"""Rounds and slots for tests that call an algorithm without messages."""

import numpy as np

from fedmr_flwr.algorithms.contract import Reply, Round, Slot
from fedmr_flwr.core.layout import Packed


def packed(floats, ints=()):
    """Return a model of float32 and int64 values."""
    return Packed(np.asarray(floats, np.float32), np.asarray(ints, np.int64))


def round_of(strategy, number, model, num_clients=10, examples=None):
    """Return a round of a strategy that knows its layout."""
    return Round(number, strategy.seed, strategy.codec.layout, num_clients, examples, lambda: model)


def slots_of(replies, sent=None):
    """Return slots that clients 0, 1, ... trained; None is a client without a good reply."""
    return [Slot(client, reply, lambda: sent) for client, reply in enumerate(replies)]


def reply_of(model, examples=1, **vectors):
    """Return a good reply."""
    return Reply(model, examples, {}, vectors)


def whole(model):
    """Return a model that may be views of others as two vectors."""
    if isinstance(model, Packed):
        return model
    return Packed(np.concatenate(model.floats), np.concatenate(model.ints) if model.ints else np.zeros(0, np.int64))
