"""`relay config`: print the settings in force."""

from __future__ import annotations

import os

import click

from relay.config import describe, load


@click.command()
def config() -> None:
    """Print the settings in force as NAME=value, secrets masked."""
    for name, value in describe(load(os.environ)):
        click.echo(f"{name}={value}")
