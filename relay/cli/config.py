"""`relay config`: print the settings in force."""

from __future__ import annotations

import click

from relay.cli.settings import read_settings
from relay.config.environment import describe


@click.command()
def config() -> None:
    """Print the settings in force as NAME=value, secrets masked."""
    for name, value in describe(read_settings()):
        click.echo(f"{name}={value}")
