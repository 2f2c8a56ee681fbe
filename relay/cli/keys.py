"""`relay keys`: look after the secrets at rest."""

from __future__ import annotations

import asyncio
import os

import click

from relay.cli.exits import UNREACHABLE, USAGE, Stop
from relay.config import Settings, load


@click.group(invoke_without_command=True)
@click.pass_context
def keys(ctx: click.Context) -> None:
    """Look after the secrets at rest."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@keys.command()
def reencrypt() -> None:
    """Move all that is encrypted at rest to the first secret of RELAY_SECRET_KEY; run again, it does nothing."""
    settings = load(os.environ)
    if settings.database_url is None:
        raise Stop(USAGE, "DATABASE_URL: `relay keys` needs one, for instance postgresql://user@host/database")
    if not settings.secret_keys:
        raise Stop(USAGE, "RELAY_SECRET_KEY: name the new secret and the old ones, separated by commas")
    asyncio.run(_reencrypt(settings, settings.database_url))


async def _reencrypt(settings: Settings, database_url: str) -> None:
    # Imported here: they bring asyncpg, which a bad setting need not wait for.
    from relay.auth import keyring
    from relay.delivery import reseal
    from relay.store import Cell, StoreError
    from relay.telemetry import logs
    from relay.values.sealed import Vault

    logs.set_up(settings.log_level, "keys")
    vault = Vault(settings.secret_keys)
    cell = Cell(
        database_url,
        direct_url=settings.database_direct_url,
        schema=settings.schema,
        application="relay keys",
        connections=settings.db_pool_max,
        lifetime_s=settings.db_max_lifetime_s,
    )
    try:
        async with cell:
            done = (await keyring.reseal(cell, vault)).and_(await reseal.reseal(cell, vault))
    except StoreError as error:
        raise Stop(UNREACHABLE, f"DATABASE_URL: {error}") from None
    click.echo(f"re-encrypted {done.moved} of {done.seals} seals")
    if done.unopened:
        raise Stop(
            USAGE, f"RELAY_SECRET_KEY: none of the given secrets opens {done.unopened} of the seals; name theirs too"
        )
