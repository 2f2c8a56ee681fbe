"""The database of a command: DATABASE_URL, or that of a `relay up` on this machine."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from relay.cli.exits import FAILED, NOT_FOUND, UNREACHABLE, USAGE, ExitWith, unreachable
from relay.cli.settings import read_settings
from relay.config.settings import Settings
from relay.local.discovery import find
from relay.local.errors import StartupError
from relay.telemetry import logs

if TYPE_CHECKING:
    from relay.auth import AuthError
    from relay.store import Cell


def settings_at_hand() -> Settings:
    """Return the settings. Without DATABASE_URL, use the database and secret key of a `relay up` on this machine.

    Raises:
        ExitWith: no database is configured, and no `relay up` runs.
    """
    settings = read_settings()
    if settings.database_url is not None:
        return settings
    try:
        running = find(settings.data_dir)
    except StartupError as unable:
        raise ExitWith(unable.code, unable.line) from None
    # libpq's variables describe other servers.
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]
    made = (running.secret_key,) if running.secret_key else ()
    return dataclasses.replace(
        settings,
        database_url=running.database_url,
        database_direct_url=None,
        secret_keys=settings.secret_keys or made,
    )


def require_secret_key(settings: Settings) -> None:
    """Require a secret key.

    Raises:
        ExitWith: there is none.
    """
    if not settings.secret_keys:
        raise ExitWith(
            USAGE,
            "RELAY_SECRET_KEY is not set: use the key of this database "
            f"(`relay up` keeps its key in {settings.data_dir / 'secret_key'})",
        )


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Cell]:
    """Open the cell, and turn errors of the database and of keys into exit codes.

    Raises:
        ExitWith: with a one-line reason.
    """
    logs.set_up(settings.log_level, "keys")
    # Imported here: these load asyncpg, and an invalid setting must fail without that delay.
    from relay.auth import AuthError, SecretKeyMismatch
    from relay.store import Cell, OutcomeUnknown, StoreError
    from relay.values.document_errors import InvalidMember

    try:
        async with Cell(
            settings.database_url or "",
            direct_url=settings.database_direct_url,
            schema=settings.schema,
            application="relay keys",
            connections=settings.db_pool_max,
            lifetime_s=settings.db_max_lifetime_s,
        ) as cell:
            yield cell
    except OutcomeUnknown:
        line = "the connection was lost during the commit, which may have succeeded: look with `relay keys list`"
        raise ExitWith(UNREACHABLE, line) from None
    except StoreError as error:
        raise unreachable(settings.database_url, error) from None
    except SecretKeyMismatch as error:
        raise ExitWith(USAGE, str(error)) from None
    except InvalidMember as error:
        raise ExitWith(USAGE, str(error)) from None
    except AuthError as error:
        raise ExitWith(_code_of(error), str(error)) from None


def _code_of(error: AuthError) -> int:
    from relay.auth import KeyNotFound, KeyRejected, OrganizationNotFound, TooManyKeys, TooManyNewKeys

    match error:
        case KeyNotFound() | KeyRejected() | OrganizationNotFound():
            return NOT_FOUND
        case TooManyKeys():
            return USAGE
        case TooManyNewKeys():
            return UNREACHABLE
        case _:
            return FAILED
