"""The contents of messages: the names of their records, and the vectors besides a model.

Messages to clients have "arrays" (the model) and "config"; replies have "arrays" and "metrics" with "num-examples".
Other vectors that an algorithm exchanges, such as control variates, are in records of their own. A model is sent
packed, as one array per type ("floats", "ints"), or as one array per tensor, like `ArrayRecord(model.state_dict())`.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from fedmr_flwr.core.layout import Floats
from fedmr_flwr.wire.npy import join, view

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
FLOATS, INTS = "floats", "ints"
EXAMPLES = "num-examples"
# A client's number: in its answer to a query, and in each message of a simulation.
CLIENT = "client"
# In a client's answer to a query: by which it shows that it has the same sealing key as the others.
KEY = "sealing-key"
# In such an answer: 1 if the node only scores models, and is no client.
EVALUATES = "evaluates"
ROUND = "server-round"
# The key of the round of the client's last good reply, 0 if there was none.
LAST_ROUND = "last-round"
# The record of the names and lengths of the vectors that a reply must contain.
RETURNS = "returns"
# The key by which a client that scores a model says whether it did so on test examples of its own.
OWN_TESTS = "own-tests"
# The key by which a reply reports that the client's state is lost.
LOST_STATE = "lost-state"


def vector_record(values: NDArray[Any]) -> ArrayRecord:
    """Convert a vector that is sent besides the model to a record."""
    record = ArrayRecord()
    record[FLOATS] = join([values], np.float32)
    return record


def vectors(content: RecordDict, names: Iterable[str]) -> dict[str, Floats]:
    """Return the vectors of a message besides the model.

    Args:
        content: of the message.
        names: of the vectors' records; missing ones are left out.

    Raises:
        RecordError: one is damaged.
    """
    found = {name: content.array_records.get(name) for name in names}
    return {name: view(record[FLOATS]) for name, record in found.items() if record and FLOATS in record}
