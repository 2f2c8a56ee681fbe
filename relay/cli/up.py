"""`relay up`: run everything on one machine."""

from __future__ import annotations

import asyncio
import io
import os
import sys

import click

from relay.cli.exits import ExitWith
from relay.cli.settings import read_settings


@click.command()
def up() -> None:
    """Run PostgreSQL, the API, delivery and a demo receiver on this machine, until Ctrl-C."""
    settings = read_settings()

    # Imported here: an invalid setting must fail without this delay.
    from relay.cli.http_server import raise_open_files_limit
    from relay.local.errors import StartupError
    from relay.local.up import up as run
    from relay.telemetry import logs

    logs.set_up(settings.log_level, "up")
    raise_open_files_limit()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Event types may contain characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        asyncio.run(run(settings, os.environ))
    except StartupError as unable:
        raise ExitWith(unable.code, unable.line) from None
