"""Local differential privacy: clipping of a trained model and noise, before it is sent."""

from copy import copy

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.mod import LocalDpMod

from fedmr_flwr.config.privacy import LocalDp
from fedmr_flwr.core.layout import Floats, Layout, Packed
from fedmr_flwr.wire.messages import ARRAYS, FLOATS
from fedmr_flwr.wire.npy import view


def protect(trained: Packed, received: Packed, layout: Layout, how: LocalDp, message: Message) -> Packed:
    """Clip a client's update and add noise to every float that training changes, with Flower's LocalDpMod.

    Trainable parameters and buffers are clipped and noised separately: BatchNorm's statistics move hundreds of times
    as far as the weights, and would leave them nothing of a common bound. Each of the two spends half of epsilon and
    delta, so that both together keep the stated budget. A model without buffers spends all of it on its parameters.

    The noise is not drawn from the seed of the run: the server knows the seed, and could compute and subtract the
    noise. So two runs of the same configuration differ.

    Args:
        trained: the model after training.
        received: the model that the client received.
        layout: of both.
        how: the settings of clipping and noise.
        message: the message of the server.

    Returns:
        A new model. Integers are unchanged: they count batches, and noise would turn them into fractions. A variance
        that is negative after the noise becomes zero, which reveals nothing more.

    Source: Dwork and Roth, "The Algorithmic Foundations of Differential Privacy", 2014, theorem A.1 (the
    Gaussian mechanism) and theorem 3.16 (composition).
    """
    parts = [np.r_[columns] for columns in (layout.parameters, layout.buffers) if columns]
    floats = trained.floats.copy()
    for part in parts:
        # Flower's own code, because others have examined it. Called here and not as a mod of the app, because it
        # expects a single record and would add noise to counters.
        mod = LocalDpMod(how.clipping_norm, how.sensitivity, how.epsilon / len(parts), how.delta / len(parts))
        request = copy(message)
        request.content = _content(received.floats[part])
        reply = Message(_content(_update(trained.floats[part], received.floats[part])), reply_to=message)
        context = Context(0, 0, {}, RecordDict(), {})  # the mod does not use it
        with np.errstate(over="ignore"):  # an update of infinite length is clipped to zero
            record = mod(request, context, lambda *_, reply=reply: reply).content.array_records[ARRAYS]
        floats[part] = view(record[FLOATS])
    # They say nothing about the client, and a pretrained part would be lost under noise.
    for columns in layout.frozen:
        floats[columns] = received.floats[columns]
    for columns in layout.variances:
        np.maximum(floats[columns], 0, out=floats[columns])
    return Packed(floats, trained.ints)


def _update(trained: Floats, received: Floats) -> Floats:
    """Return a trained model whose update Flower's mod can clip."""
    with np.errstate(all="ignore"):
        update = trained - received
    if np.isfinite(update).all() and update.any():
        return trained
    # The mod divides by the length of the update, and passes NaN on: it needs a finite update that is not zero.
    least = received.copy()  # as if training had changed almost nothing
    least[0] = np.nextafter(least[0], np.float32(np.inf))
    return least


def _content(floats: Floats) -> RecordDict:
    return RecordDict({ARRAYS: ArrayRecord({FLOATS: Array(floats)})})
