"""Sealed units: whatever is not exactly what was sealed, where it belongs, is refused in one line."""

import hmac
import os
import random
import re
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from fedmr_flwr.errors import ConfigError, SealError
from fedmr_flwr.wire.sealing import (
    OVERHEAD,
    Binding,
    Origin,
    identity,
    new_key,
    open_sealed,
    origin_of,
    read_key,
    seal,
)

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
HERE = Binding("0123456789abcdef", "fingerprint", "start", "deals")
AT = Origin(5, 2)
CONTENT = b"the values of one layer"

contents = st.binary(max_size=200)
numbers = st.integers(0, 2**32 - 1)


@given(contents, numbers, numbers, numbers)
def test_opens_to_what_was_sealed(content, number, slot, unit):
    sealed = seal(KEY, HERE, Origin(number, slot), unit, content)
    assert len(sealed) == len(content) + OVERHEAD
    assert origin_of(sealed) == (number, slot)
    assert open_sealed(KEY, HERE, unit, sealed) == content


def test_format_is_what_is_written_down(monkeypatch):
    # HKDF of RFC 5869, block by block, so that nothing of the derivation can change unnoticed.
    salt, info = bytes(range(100, 132)), b'fedmr_flwr: a sealed unit["0123456789abcdef", 5]'
    monkeypatch.setattr("fedmr_flwr.wire.sealing.secrets.token_bytes", lambda length: salt[:length])
    extracted = hmac.digest(salt, KEY, "sha256")
    first = hmac.digest(extracted, info + b"\1", "sha256")
    nonce = hmac.digest(extracted, first + info + b"\2", "sha256")[:12]
    associated = b'["0123456789abcdef", "fingerprint", "start", "deals", 5, 2, 3, [2, 4]]'
    expected = bytes([0, 0, 0, 5, 0, 0, 0, 2]) + salt + AESGCM(first).encrypt(nonce, CONTENT, associated)
    assert seal(KEY, HERE, AT, 3, CONTENT, (2, 4)) == expected


@given(contents.filter(lambda content: len(content) > 7))
def test_content_is_not_in_a_sealed_unit(content):
    assert content not in seal(KEY, HERE, AT, 3, content)


def test_same_unit_is_sealed_with_another_key():
    sealed = [seal(KEY, HERE, AT, 3, CONTENT) for _ in range(50)]
    assert len({one[8:40] for one in sealed}) == 50, "a salt for each"
    assert len({one[40:48] for one in sealed}) == 50, "and so a key stream of its own"


@pytest.mark.parametrize(
    ("key", "binding", "unit", "skipped"),
    [
        (OTHER, HERE, 3, ()),
        (KEY, replace(HERE, run="fedcba9876543210"), 3, ()),
        (KEY, replace(HERE, layout="another layout"), 3, ()),
        (KEY, replace(HERE, start="another start"), 3, ()),
        (KEY, replace(HERE, deals="other deals"), 3, ()),
        (KEY, HERE, 4, ()),
        (KEY, HERE, 3, (4,)),
    ],
    ids=["key", "run", "layout", "initial model", "deals", "unit", "history"],
)
def test_opens_nowhere_else(key, binding, unit, skipped):
    sealed = seal(KEY, HERE, AT, 3, CONTENT)
    with pytest.raises(SealError, match=f"unit {unit} of round 5, slot 2, cannot be opened"):
        open_sealed(key, binding, unit, sealed, skipped)


def test_later_rounds_do_not_matter():
    sealed = seal(KEY, HERE, AT, 3, CONTENT, skipped=(2, 4))
    assert open_sealed(KEY, HERE, 3, sealed, skipped=(2, 4, 5, 6)) == CONTENT


@pytest.mark.parametrize("origin", [Origin(4, 2), Origin(5, 1)], ids=["round", "slot"])
def test_origin_cannot_be_changed(origin):
    sealed = seal(KEY, HERE, AT, 3, CONTENT)
    claimed = seal(KEY, HERE, origin, 3, b"")[:8] + sealed[8:]
    assert origin_of(claimed) == origin
    with pytest.raises(SealError, match=f"unit 3 of round {origin.round}, slot {origin.slot}, cannot be opened"):
        open_sealed(KEY, HERE, 3, claimed)


@pytest.mark.parametrize("length", range(len(CONTENT) + OVERHEAD))
def test_truncated_unit_is_refused(length):
    with pytest.raises(SealError, match="cannot be opened|cut off before"):
        open_sealed(KEY, HERE, 3, seal(KEY, HERE, AT, 3, CONTENT)[:length])


def test_each_flipped_bit_is_refused():
    sealed = seal(KEY, HERE, AT, 3, CONTENT)
    for at in range(8 * len(sealed)):
        flipped = bytearray(sealed)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(SealError, match="cannot be opened"):
            open_sealed(KEY, HERE, 3, bytes(flipped))


def test_two_units_cannot_be_spliced():
    one, two = (seal(KEY, HERE, AT, unit, CONTENT) for unit in (3, 4))
    for at in (40, 50, len(one) - 16):
        with pytest.raises(SealError, match="cannot be opened"):
            open_sealed(KEY, HERE, 3, two[:at] + one[at:])


def test_no_damaged_unit_opens_or_crashes():
    # 100,000 take six seconds: FEDMR_FUZZ=100000.
    rng, sealed = random.Random(1), seal(KEY, HERE, AT, 3, CONTENT)
    for _ in range(int(os.environ.get("FEDMR_FUZZ", "20000"))):
        damaged = bytearray(sealed)
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(damaged) + 1)
            damaged[start : start + rng.randint(0, 9)] = rng.randbytes(rng.randint(0, 9))
        if damaged == sealed:
            continue
        with pytest.raises(SealError) as caught:
            open_sealed(KEY, HERE, 3, bytes(damaged))
        assert "\n" not in str(caught.value)


def test_key_file_is_read(tmp_path):
    path = tmp_path / "sealing.key"
    path.write_text(new_key())
    assert len(read_key(path)) == 32
    path.write_text(new_key())
    assert re.fullmatch("[0-9a-f]{64}\n", path.read_text())


@pytest.mark.parametrize("text", ["", "00ff", "zz" * 32, "00" * 33, "ä"])
def test_wrong_key_file_is_one_line(tmp_path, text):
    path = tmp_path / "sealing.key"
    path.write_text(text)
    with pytest.raises(ConfigError, match="openssl rand -hex 32"):
        read_key(path)


def test_identity_tells_keys_apart():
    assert identity(KEY) == identity(bytes(range(32))) != identity(OTHER)
    assert 0 <= identity(KEY) < 2**56, "it fits into a metric"


def test_identity_is_derived_for_nothing_else():
    extracted = hmac.digest(bytes(32), KEY, "sha256")
    expected = hmac.digest(extracted, b"fedmr_flwr: the identity of a key\1", "sha256")[:7]
    assert identity(KEY) == int.from_bytes(expected)
