"""Local differential privacy: a trained model is clipped and made noisy before it leaves its client."""

from copy import copy

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.mod import LocalDpMod

from fedmr_flwr.config.settings import LocalDp
from fedmr_flwr.core.layout import Floats, Layout, Packed
from fedmr_flwr.wire.messages import ARRAYS, FLOATS
from fedmr_flwr.wire.npy import view


def protect(trained: Packed, received: Packed, layout: Layout, how: LocalDp, message: Message) -> Packed:
    """Clip what a client's training added to its model, and add noise to every float, with Flower's LocalDpMod.

    The noise is not drawn from the seed of the run: the server knows the seed, and could draw and subtract the noise.
    So two runs of the same configuration differ.

    Args:
        trained: the model after training.
        received: the model that the client was sent.
        layout: of both.
        how: how much is clipped and added.
        message: the one that is replied to.

    Returns:
        A new model. Integers are unchanged: they count batches, and noise would make them fractions. A variance that
        noise has made negative becomes zero, which reveals nothing more.

    Source: Dwork and Roth, "The Algorithmic Foundations of Differential Privacy", 2014, theorem A.1 (the
    Gaussian mechanism).
    """
    mod = LocalDpMod(how.clipping_norm, how.sensitivity, how.epsilon, how.delta)
    question = copy(message)
    question.content = _content(received.floats)
    answer = Message(_content(_update(trained.floats, received.floats)), reply_to=message)
    context = Context(0, 0, {}, RecordDict(), {})  # the mod does not use it
    with np.errstate(over="ignore"):  # an update of infinite length is clipped to zero
        record = mod(question, context, lambda *_: answer).content.array_records[ARRAYS]
    floats = view(record[FLOATS]).copy()
    for entry in layout.entries:
        if entry.name.endswith("running_var"):
            np.maximum(floats[entry.columns], 0, out=floats[entry.columns])
    return Packed(floats, trained.ints)


def _update(trained: Floats, received: Floats) -> Floats:
    """Return a trained model whose update Flower's mod can clip: the mod divides by its length and passes NaN on."""
    with np.errstate(all="ignore"):
        update = trained - received
    if np.isfinite(update).all() and update.any():
        return trained
    least = received.copy()  # as if training had changed almost nothing
    least[0] = np.nextafter(least[0], np.float32(np.inf))
    return least


def _content(floats: Floats) -> RecordDict:
    return RecordDict({ARRAYS: ArrayRecord({FLOATS: Array(floats)})})
