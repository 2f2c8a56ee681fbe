"""Secrets at rest: only the right key, in the right context, opens a sealed value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.values.encryption import CannotOpen, Vault

FIRST, SECOND = "first " * 8, "second " * 8


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_what_is_sealed_opens_again(plain: bytes, context: bytes) -> None:
    vault = Vault([FIRST])

    assert vault.open(vault.seal(plain, context), context) == plain


def test_the_plain_text_does_not_show_and_no_two_seals_are_alike() -> None:
    vault = Vault([FIRST])

    one, two = (vault.seal(b"a secret to keep", b"here") for _ in range(2))

    assert b"secret" not in one
    assert one != two


def test_every_secret_opens_and_the_first_seals() -> None:
    old, new = Vault([FIRST]), Vault([SECOND, FIRST])

    assert new.open(old.seal(b"kept", b"here"), b"here") == b"kept"
    assert Vault([SECOND]).open(new.seal(b"kept", b"here"), b"here") == b"kept"
    with pytest.raises(CannotOpen):
        old.open(new.seal(b"kept", b"here"), b"here")


def test_what_is_sealed_for_one_purpose_does_not_open_for_another() -> None:
    vault = Vault([FIRST])

    with pytest.raises(CannotOpen):
        vault.open(vault.seal(b"kept", b"here"), b"there")


@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_changed_byte_anywhere_is_noticed(at: int, difference: int) -> None:
    vault = Vault([FIRST])
    sealed = bytearray(vault.seal(b"kept", b"here"))
    sealed[at % len(sealed)] ^= difference

    with pytest.raises(CannotOpen):
        vault.open(bytes(sealed), b"here")


def test_what_is_cut_short_does_not_open() -> None:
    vault = Vault([FIRST])
    sealed = vault.seal(b"kept", b"here")

    for length in range(len(sealed)):
        with pytest.raises(CannotOpen):
            vault.open(sealed[:length], b"here")


@given(st.binary(max_size=60))
def test_arbitrary_bytes_do_not_open(sealed: bytes) -> None:
    with pytest.raises(CannotOpen):
        Vault([FIRST]).open(sealed, b"here")


def test_what_is_resealed_opens_with_the_first_key_alone_and_is_then_left_as_it_is() -> None:
    new = Vault([SECOND, FIRST])
    sealed = Vault([FIRST]).seal(b"kept", b"here")

    moved = new.reseal(sealed, b"here")

    assert Vault([SECOND]).open(moved, b"here") == b"kept"
    assert new.reseal(moved, b"here") is moved
    with pytest.raises(CannotOpen):
        Vault([SECOND]).reseal(sealed, b"here")
