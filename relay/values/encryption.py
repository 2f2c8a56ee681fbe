"""Encryption of secrets at rest under RELAY_SECRET_KEY, with AES-256-GCM from the `cryptography` library."""

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
    """The number of sealed values that were moved to the first key, of all, and of those that no given key opens."""

    moved: int
    seals: int
    unopened: int

    def and_(self, other: Resealed) -> Resealed:
        """Return the sum of both."""
        return Resealed(self.moved + other.moved, self.seals + other.seals, self.unopened + other.unopened)


class CannotOpen(ValueError):
    """None of the given secret keys opens the sealed value."""


class Vault:
    """Seals with the first of the operator's secret keys, and opens with the key that sealed a value.

    A sealed value is a version byte, four bytes that identify the key, the nonce and the ciphertext. It is bound to a
    context, so that a secret cannot be moved from one row to another.

    Args:
        secrets: the parts of RELAY_SECRET_KEY. They are long and random, so a labelled hash is a sufficient derivation.
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
        """Return the value sealed under the first key. If it already is, it is returned unchanged.

        Raises:
            CannotOpen: as `open`.
        """
        if sealed.startswith(_VERSION + self._first):
            return sealed
        return self.seal(self.open(sealed, context), context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Decrypt a value that was sealed for `context`.

        Raises:
            CannotOpen: it was sealed under another key or for another context, or it is damaged.
        """
        key_id = sealed[1 : 1 + _KEY_ID_BYTES]
        cipher = self._ciphers.get(key_id)
        if sealed[:1] != _VERSION or cipher is None:
            raise CannotOpen("sealed under another secret key")
        body = sealed[1 + _KEY_ID_BYTES :]
        try:
            return cipher.decrypt(body[:_NONCE_BYTES], body[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            raise CannotOpen("damaged, or sealed for another context") from None
