"""What messages hold: the names of their records, and the vectors that travel besides a model.

Messages to clients hold "arrays" (the model) and "config"; replies hold "arrays" and "metrics" with
"num-examples". What else an algorithm exchanges, such as control variates, are vectors in records of their
own names. A model travels packed, as one array per type ("floats", "ints"), or as one array per
tensor, as `ArrayRecord(model.state_dict())` makes it.
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
ROUND = "server-round"
# Under this key a message says in which round the client's last good reply was, 0 if there is none yet.
LAST_ROUND = "last-round"
# A record of a message that names the vectors that the reply must hold, and their lengths.
RETURNS = "returns"
# Under this key a reply's metrics say that what the client should have kept is not there.
LOST_STATE = "lost-state"


def vector_record(values: NDArray[Any]) -> ArrayRecord:
    """Turn a vector that travels besides the model into a record."""
    record = ArrayRecord()
    record[FLOATS] = join([values], np.float32)
    return record


def vectors(content: RecordDict, names: Iterable[str]) -> dict[str, Floats]:
    """Return the vectors that came besides the model.

    Args:
        content: of the message.
        names: of the vectors' records; those that are not there are left out.

    Raises:
        RecordError: one is damaged.
    """
    found = {name: content.array_records.get(name) for name in names}
    return {name: view(record[FLOATS]) for name, record in found.items() if record and FLOATS in record}
