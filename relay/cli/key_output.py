"""The output of `relay keys`: columns, or JSON."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import click

from relay.cli.exits import printable
from relay.cli.table import aligned
from relay.values.json_encoding import encode
from relay.values.times import rfc3339, rfc3339_or_none

if TYPE_CHECKING:
    from uuid import UUID

    from relay.auth import OwnedKey

_HEADS: Final = ("KEY ID", "NAME", "SCOPES", "CREATED", "LAST USED", "ENDS")


def print_key(api_key: str, key_id: UUID, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a new key, the only time it is shown: alone on stdout with the rest on stderr, or all as one object."""
    rest = {"key_id": str(key_id), **facts}
    if as_json:
        click.echo(encode({"api_key": api_key, **rest}))
        return
    click.echo(api_key)
    for name, value in rest.items():
        click.echo(f"{name}: {_text(value)}", err=True)


def print_objects(page: Sequence[OwnedKey]) -> None:
    """Print one JSON object a line for each key."""
    for held in page:
        key = held.key
        shown = {
            "organization_id": str(held.organization_id),
            "organization_name": held.organization_name,
            "tier": held.tier,
            "key_id": str(key.key_id),
            "name": key.name,
            "scopes": list(key.scopes),
            "created_at": rfc3339(key.created_at),
            "last_used_at": rfc3339_or_none(key.last_used_at),
            "expires_at": rfc3339_or_none(key.expires_at),
        }
        click.echo(encode(shown))


def print_table(page: Sequence[OwnedKey]) -> None:
    """Print the keys grouped by organization."""
    rows = [_HEADS, *(_row(held) for held in page)]
    heads, *lines = aligned(rows, "  ")
    click.echo(heads)
    at = 0
    for organization_id, group in groupby(page, lambda held: held.organization_id):
        keys = list(group)
        click.echo(f"{organization_id}  {keys[0].tier}  {printable(keys[0].organization_name)}")
        for line in lines[at : at + len(keys)]:
            click.echo(line)
        at += len(keys)


def _row(held: OwnedKey) -> tuple[str, ...]:
    key = held.key
    scopes = ",".join(key.scopes)
    return str(key.key_id), key.name, scopes, _at(key.created_at), _at(key.last_used_at), _at(key.expires_at)


def _at(moment: datetime.datetime | None) -> str:
    return "never" if moment is None else f"{moment.astimezone(datetime.UTC):%Y-%m-%d %H:%MZ}"


def _text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "never" if value is None else printable(str(value))
