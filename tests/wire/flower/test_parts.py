"""How long the parts of a message are waited for."""

from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError, pull_objects

from fedmr_flwr.wire.flower import parts


@pytest.fixture
def slow(monkeypatch):
    """A sender of which each question takes 25 s; every part is there at the third, but for the one named "never"."""
    clock, asked = [0.0], Counter()
    monkeypatch.setattr(parts, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(parts, "pull_soon", partial(pull_objects, initial_backoff=0.001))

    def pull(part):
        asked[part] += 1
        clock[0] += 25
        if asked[part] == 3 and part != "never":
            return b"here"
        raise ObjectUnavailableError(part)

    return SimpleNamespace(pull=pull, clock=clock, asked=asked)


def test_waits_while_parts_come(slow):
    found = parts.pull_or_give_up(object_ids=["first", "second"], pull_object_fn=slow.pull, max_concurrent_pulls=1)
    assert (found, slow.clock) == ({"first": b"here", "second": b"here"}, [150])


def test_gives_up_after_a_minute(slow):
    with pytest.raises(ObjectPullError, match="no part has arrived for 60 s"):
        parts.pull_or_give_up(["never"], slow.pull)
    assert slow.asked["never"] == 3


def test_parts_are_polled_soon():
    assert parts.pull_soon.keywords == {"initial_backoff": 0.1}
    assert parts.pull_soon(["a"], lambda part: b"whole") == {"a": b"whole"}
