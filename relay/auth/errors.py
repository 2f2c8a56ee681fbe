"""The errors of keys and organizations."""

from __future__ import annotations

from typing import ClassVar


class AuthError(Exception):
    """The base class of these errors. `text` is one line for the operator of the command line."""

    text: ClassVar = ""

    def __str__(self) -> str:
        return self.text


class KeyMissing(AuthError):
    """The request has no key."""

    text = "the API key is missing"


class KeyRejected(AuthError):
    """The key is unknown, revoked or expired."""

    text = "the API key is unknown, revoked or expired"


class OrganizationNotFound(AuthError):
    """There is no such organization, or none of its keys is in force."""

    text = "there is no such organization, or none of its keys is in force"


class KeyNotFound(AuthError):
    """The organization has no such key in force."""

    text = "there is no such key in force"


class LastManager(AuthError):
    """No other key could manage the organization."""

    text = (
        "this is the last key that can manage the organization: create another that does not expire, or rotate this one"
    )


class TooManyKeys(AuthError):
    """The organization has as many keys in force as it may."""

    text = "the organization has 100 keys in force, the limit: revoke some first"


class TooManyNewKeys(AuthError):
    """So many keys are being created that this one would wait for seconds."""

    text = "too many keys are being created: try again in a moment"
