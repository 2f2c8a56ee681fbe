"""`relay migrate`: apply missing migrations."""

from __future__ import annotations

import asyncio

import click

from relay.cli.exits import FAILED, USAGE, ExitWith, unreachable
from relay.cli.settings import read_settings


@click.command()
def migrate() -> None:
    """Apply missing migrations. It can be repeated."""
    settings = read_settings()
    url = settings.database_direct_url or settings.database_url
    if not url:
        raise ExitWith(
            USAGE,
            "DATABASE_URL is not set: set it to the PostgreSQL to migrate, or run `relay up`, which has its own",
        )

    # Imported here: this loads asyncpg, and an invalid setting must fail without that delay.
    from relay.store import DatabaseUnavailable, MigrationRefused
    from relay.store.migrations import migrate as apply
    from relay.telemetry import logs

    logs.set_up(settings.log_level, "migrate")
    try:
        applied = asyncio.run(apply(url, settings.schema))
    except MigrationRefused as refused:
        raise ExitWith(FAILED, str(refused)) from None
    except DatabaseUnavailable as unavailable:
        raise unreachable(url, unavailable) from None
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("nothing to apply")
