"""How long the parts of a message are waited for, at the server and at the nodes."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError, pull_objects

# Until a part that is still being uploaded is asked for again; each time it is twice as long.
RETRY_SECONDS = 0.1
# Until a message is given up of which no part comes any more.
GIVE_UP_SECONDS = 60.0

pull_soon = partial(pull_objects, initial_backoff=RETRY_SECONDS)


def pull_or_give_up(
    object_ids: list[str], pull_object_fn: Callable[[str], bytes], **options: Any
) -> dict[str, bytes]:
    """Fetch the parts of a reply as Flower's `pull_objects` does, but sooner, and not for ever.

    If the connection breaks while a node announces a reply, it may believe that all of it has arrived. Flower waits
    three minutes for parts that no one sends. The names are Flower's.

    Args:
        object_ids: of the parts.
        pull_object_fn: fetches one, or raises `ObjectUnavailableError` if it is not there yet.
        **options: of `pull_objects`.

    Raises:
        ObjectPullError: no part has come for a minute.
    """
    last = time.monotonic()

    def pull(part: str) -> bytes:
        nonlocal last
        try:
            content = pull_object_fn(part)
        except ObjectUnavailableError:
            if time.monotonic() - last > GIVE_UP_SECONDS:
                raise ObjectPullError(part, f"no part has come for {GIVE_UP_SECONDS:g} s") from None
            raise
        last = time.monotonic()
        return content

    return pull_soon(object_ids, pull, **options)
