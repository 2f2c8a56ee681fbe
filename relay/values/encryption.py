"""Secrets at rest: sealed under RELAY_SECRET_KEY, with AES-256-GCM of the `cryptography` library."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_VERSION: Final = b"\x01"
_KEY_ID_BYTES: Final = 4
_NONCE_BYTES: Final = 12


class Resealed(NamedTuple):
    """How many seals were moved to the first key, how many there are, and how many no given key opens."""

    moved: int
    seals: int
    unopened: int

    def and_(self, other: Resealed) -> Resealed:
        """Both together."""
        return Resealed(self.moved + other.moved, self.seals + other.seals, self.unopened + other.unopened)


class CannotOpen(ValueError):
    """None of the given secret keys opens what was sealed."""


class Vault:
    """Seals with the first of the operator's secret keys and opens with whichever fits.

    A sealed value is a version byte, four bytes that name the key, the nonce and the ciphertext. It is bound to a
    context, so that one row's secret cannot be moved into another's.

    Args:
        secrets: RELAY_SECRET_KEY's parts; long random texts, so a plain hash with a label is enough of a derivation.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        self._ciphers: dict[bytes, AESGCM] = {}
        self._first = b""
        for secret in secrets:
            key = hashlib.blake2b(secret.encode(), digest_size=32, person=b"relay seal").digest()
            key_id = hashlib.blake2b(key, digest_size=_KEY_ID_BYTES, person=b"relay key id").digest()
            self._ciphers[key_id] = AESGCM(key)
            self._first = self._first or key_id

    def seal(self, plain: bytes, context: bytes) -> bytes:
        """Encrypt `plain` for `context`."""
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + self._first + nonce + self._ciphers[self._first].encrypt(nonce, plain, context)

    def reseal(self, sealed: bytes, context: bytes) -> bytes:
        """The same under the first key; as it is when it is sealed under that already.

        Raises:
            CannotOpen: as `open`.
        """
        if sealed.startswith(_VERSION + self._first):
            return sealed
        return self.seal(self.open(sealed, context), context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Decrypt what was sealed for `context`.

        Raises:
            CannotOpen: it was sealed under a key that is not given here, for another context, or is damaged.
        """
        key_id = sealed[1 : 1 + _KEY_ID_BYTES]
        cipher = self._ciphers.get(key_id)
        if sealed[:1] != _VERSION or cipher is None:
            raise CannotOpen("sealed under another secret key")
        body = sealed[1 + _KEY_ID_BYTES :]
        try:
            return cipher.decrypt(body[:_NONCE_BYTES], body[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            raise CannotOpen("damaged, or sealed for something else") from None
