"""Sealing: authenticated encryption of one unit of a model, which a server can pass on but neither read nor change.

AES-256-GCM of the library cryptography, with a key and a nonce that HKDF derives for every single unit.
"""

import json
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedmr_flwr.errors import ConfigError, SealError
from fedmr_flwr.files import reading

_KEY, _NONCE, _SALT, _TAG = 32, 12, 32, 16
_HEADER = struct.Struct(">II")
# Before the encrypted bytes: round and slot, for everyone to read, and the salt; after them the tag.
OVERHEAD = _HEADER.size + _SALT + _TAG
# In place of a unit that nobody has trained: it is the initial model's, which is no secret.
UNTRAINED = _HEADER.pack(0, 0)
# What cryptography encrypts in one piece.
MOST_BYTES = 2**31 - 1 - OVERHEAD
_PURPOSE, _IDENTITY = b"fedmr_flwr: a sealed unit", b"fedmr_flwr: the identity of a key"
Bytes = bytes | memoryview


class Origin(NamedTuple):
    """Where a unit was sealed: the round, 1 for the first and 0 for `UNTRAINED`, and the slot of the model."""

    round: int
    slot: int


@dataclass(frozen=True)
class Binding:
    """What a sealed unit belongs to; it opens with nothing else.

    Attributes:
        run: the identifier of the run.
        layout: the fingerprint of the model's layout.
        start: the SHA-256 of the initial model.
        deals: the fingerprint of who trains what and where each unit goes.
    """

    run: str
    layout: str
    start: str
    deals: str


def seal(
    key: bytes, binding: Binding, origin: Origin, unit: int, content: Bytes, skipped: Sequence[int] = ()
) -> bytes:
    """Encrypt a unit.

    Args:
        key: [32], of all nodes of the run.
        binding: the run and its model.
        origin: the round and the slot in which the unit was trained.
        unit: its number.
        content: its values.
        skipped: the rounds before this one in which nothing changed.

    Returns:
        `OVERHEAD` bytes more than the content; two calls with the same arguments give different ones.
    """
    # The salt makes a key that is used once. So no nonce can repeat under a key, also if a round is repeated, a
    # message is sent twice, or a server gives one slot to two clients.
    salt = secrets.token_bytes(_SALT)
    cipher, nonce = _cipher(key, salt, binding, origin)
    sealed = cipher.encrypt(nonce, content, _associated(binding, origin, unit, skipped))
    return b"".join([_HEADER.pack(*origin), salt, sealed])


def open_sealed(key: bytes, binding: Binding, unit: int, sealed: Bytes, skipped: Sequence[int] = ()) -> bytes:
    """Decrypt a unit, and verify that it is what was sealed for this run, round, slot and unit.

    Args:
        key: [32], of all nodes of the run.
        binding: the run and its model.
        unit: the number of the unit.
        sealed: what `seal` returned.
        skipped: the rounds, up to now, in which nothing changed.

    Raises:
        SealError: it is anything else.
    """
    origin, data = origin_of(sealed), memoryview(sealed)
    earlier = [number for number in skipped if number < origin.round]
    cipher, nonce = _cipher(key, bytes(data[_HEADER.size :][:_SALT]), binding, origin)
    try:
        return cipher.decrypt(nonce, data[_HEADER.size + _SALT :], _associated(binding, origin, unit, earlier))
    except InvalidTag:
        raise SealError(
            f"unit {unit} of round {origin.round}, slot {origin.slot}, cannot be opened: it is damaged, or was "
            "sealed with another key, or for another run, model, unit, round or slot"
        ) from None


def origin_of(sealed: Bytes) -> Origin:
    """Return where a sealed unit says that it comes from, which is verified when it is opened.

    Raises:
        SealError: it is too short.
    """
    data = memoryview(sealed)
    if len(data) < _HEADER.size:
        raise SealError(f"a sealed unit has {len(data)} bytes, and is cut off before it says where it comes from")
    return Origin(*_HEADER.unpack_from(data))


def new_key() -> str:
    """Draw a key, and return it as the text of its file."""
    return secrets.token_hex(_KEY) + "\n"


def read_key(path: Path) -> bytes:
    """Read a key from its file.

    Raises:
        ConfigError: it cannot be read, or is no key.
    """
    with reading(path, ConfigError, "a sealing key is 64 hexadecimal digits, as `openssl rand -hex 32` makes them"):
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
        if len(key) != _KEY:
            raise ValueError(f"it has {len(key)} bytes, not {_KEY}")
    return key


def identity(key: bytes) -> int:
    """Return a number that two nodes compare to know whether they have the same key; it does not help to guess it."""
    return int.from_bytes(HKDF(SHA256(), 7, None, _IDENTITY).derive(key))


def _cipher(key: bytes, salt: bytes, binding: Binding, origin: Origin) -> tuple[AESGCM, bytes]:
    info = json.dumps([binding.run, origin.round]).encode()
    derived = HKDF(SHA256(), _KEY + _NONCE, salt, _PURPOSE + info).derive(key)
    return AESGCM(derived[:_KEY]), derived[_KEY:]


def _associated(binding: Binding, origin: Origin, unit: int, skipped: Sequence[int]) -> bytes:
    own = [binding.run, binding.layout, binding.start, binding.deals]
    return json.dumps([*own, *origin, unit, [*skipped]]).encode()
