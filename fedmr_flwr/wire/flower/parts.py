"""Waiting for the parts of a message, at the server and at the nodes."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError, pull_objects

# Seconds until a part that is still being uploaded is requested again; doubled each time.
RETRY_SECONDS = 0.1
# Seconds without a new part until a message is given up.
GIVE_UP_SECONDS = 60.0

pull_soon = partial(pull_objects, initial_backoff=RETRY_SECONDS)


def pull_or_give_up(
    object_ids: list[str], pull_object_fn: Callable[[str], bytes], **options: Any
) -> dict[str, bytes]:
    """Fetch the parts of a reply like Flower's `pull_objects`, but poll sooner and give up after a minute.

    If the connection breaks while a node announces a reply, it may believe that all of it has arrived. Flower waits
    three minutes for parts that are never sent. The names are Flower's.

    Args:
        object_ids: of the parts.
        pull_object_fn: fetches one, or raises `ObjectUnavailableError` if it has not arrived.
        **options: of `pull_objects`.

    Raises:
        ObjectPullError: no part has arrived for a minute.
    """
    last = time.monotonic()

    def pull(part: str) -> bytes:
        nonlocal last
        try:
            content = pull_object_fn(part)
        except ObjectUnavailableError:
            # Counted from the latest part, not from the start: a slow upload is not a broken one.
            if time.monotonic() - last > GIVE_UP_SECONDS:
                raise ObjectPullError(part, f"no part has arrived for {GIVE_UP_SECONDS:g} s") from None
            raise
        last = time.monotonic()
        return content

    return pull_soon(object_ids, pull, **options)
