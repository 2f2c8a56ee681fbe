"""`relay keys`: organizations, their API keys, and secrets at rest."""

from __future__ import annotations

import asyncio
import datetime
import io
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from relay.cli.cell import opened, require_secret_key, settings_at_hand
from relay.cli.exits import NOT_FOUND, USAGE, ExitWith
from relay.cli.key_output import print_key, print_objects, print_table
from relay.config.settings import TIERS, Settings
from relay.values import uuid7
from relay.values.times import read_rfc3339, rfc3339, rfc3339_or_none

if TYPE_CHECKING:
    from relay.auth import KeyAdmin, KeyListing

_LONGEST_OVERLAP_S = 604_800


class _Id(click.ParamType[UUID]):
    name = "uuid"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> UUID:
        """Parse a UUIDv7, or fail with a usage error."""
        return uuid7.parse(value) or self.fail("not an id: a UUIDv7", param, ctx)


class _Time(click.ParamType[datetime.datetime]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime.datetime:
        """Parse a time, or fail with a usage error."""
        return read_rfc3339(value) or self.fail(
            "not a time of RFC 3339 with an offset, such as 2026-01-02T03:04:05Z", param, ctx
        )


_as_json: Callable[..., Any] = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(invoke_without_command=True)
@click.pass_context
def keys(ctx: click.Context) -> None:
    """Create, list, rotate and revoke API keys.

    They work on the database of DATABASE_URL, with its RELAY_SECRET_KEY. Without DATABASE_URL they use the `relay up`
    that runs in RELAY_DATA_DIR.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@keys.command()
@click.option("--organization", metavar="NAME", help="Create an organization with this name and its first key.")
@click.option("--tier", type=click.Choice(TIERS), help="Tier of the new organization (default: free).")
@click.option("--organization-id", type=_Id(), help="Create another key for this organization.")
@click.option("--name", help="Name of the other key.")
@click.option(
    "--scope", "scopes", multiple=True, metavar="ingest|consume|manage", help="Scope of the key (default: all)."
)
@click.option("--expires-at", type=_Time(), help="Expiry, as 2026-01-02T03:04:05Z (default: never).")
@_as_json
def create(
    organization: str | None,
    tier: str | None,
    organization_id: UUID | None,
    name: str | None,
    scopes: tuple[str, ...],
    expires_at: datetime.datetime | None,
    as_json: bool,
) -> None:
    """Create an organization or another key, and print the key. It is shown only once."""
    if (organization is None) == (organization_id is None):
        raise click.UsageError("Give either --organization or --organization-id.")
    if organization is not None and (name is not None or scopes or expires_at is not None):
        raise click.UsageError("--name, --scope and --expires-at go with --organization-id.")
    if organization_id is not None and (name is None or tier is not None):
        raise click.UsageError("--organization-id requires --name and does not accept --tier.")

    async def make(keys: KeyAdmin, listing: KeyListing) -> None:
        if organization_id is not None:
            await _further_key(keys, organization_id, name or "", scopes, expires_at, as_json)
            return
        whose = {"organization_name": organization, "tier": tier or TIERS[0]}
        made = await keys.create_organization(organization or "", tier or TIERS[0])
        print_key(made.api_key, made.key_id, {"organization_id": str(made.organization_id), **whose}, as_json=as_json)

    asyncio.run(_change(settings_at_hand(), make))


@keys.command("list")
@click.option("--organization-id", type=_Id(), help="Only the keys of this organization.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line for each key.")
def list_(organization_id: UUID | None, as_json: bool) -> None:
    """List the keys in force, without their secrets."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names may contain characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    asyncio.run(_list(settings_at_hand(), organization_id, as_json))


@keys.command()
@click.argument("key_id", type=_Id())
@click.option(
    "--overlap",
    "overlap_s",
    type=click.IntRange(0, _LONGEST_OVERLAP_S),
    default=0,
    metavar="SECONDS",
    help="How long the old key stays valid (default: 0).",
)
@_as_json
def rotate(key_id: UUID, overlap_s: int, as_json: bool) -> None:
    """Replace a key, and print the new one. It is shown only once."""

    async def replace(keys: KeyAdmin, listing: KeyListing) -> None:
        rotated = await keys.rotate(await _owner(listing, key_id), key_id, overlap_s)
        before = {"previous_key_id": str(key_id), "previous_expires_at": rfc3339(rotated.previous_expires_at)}
        print_key(rotated.api_key, rotated.key_id, before, as_json=as_json)

    asyncio.run(_change(settings_at_hand(), replace))


@keys.command()
@click.argument("key_id", type=_Id())
def revoke(key_id: UUID) -> None:
    """Revoke a key. Every process rejects it within a second."""

    async def end(keys: KeyAdmin, listing: KeyListing) -> None:
        await keys.revoke(await _owner(listing, key_id), key_id)
        click.echo(f"revoked {key_id}", err=True)

    asyncio.run(_change(settings_at_hand(), end))


@keys.command()
def reencrypt() -> None:
    """Re-encrypt everything at rest with the first secret of RELAY_SECRET_KEY. It can be repeated."""
    asyncio.run(_reencrypt(settings_at_hand()))


async def _change(settings: Settings, work: Callable[[KeyAdmin, KeyListing], Any]) -> None:
    require_secret_key(settings)
    from relay.auth import Hasher, KeyAdmin, KeyListing, Keyring
    from relay.values.encryption import Vault

    async with opened(settings) as cell, Hasher() as hasher:
        keyring = await Keyring.open(cell, Vault(settings.secret_keys))
        await work(KeyAdmin(cell, keyring, hasher, None), KeyListing(cell))


async def _owner(listing: KeyListing, key_id: UUID) -> UUID:
    organization_id = await listing.organization_of(key_id)
    if organization_id is None:
        raise ExitWith(NOT_FOUND, f"there is no key {key_id}")
    return organization_id


async def _further_key(
    keys: KeyAdmin,
    organization_id: UUID,
    name: str,
    scopes: Sequence[str],
    expires_at: datetime.datetime | None,
    as_json: bool,
) -> None:
    from relay.auth import SCOPES

    made = await keys.create(organization_id, name, scopes or SCOPES, expires_at)
    if made is None:
        raise ExitWith(NOT_FOUND, f"there is no organization {organization_id}")
    facts = {
        "organization_id": str(organization_id),
        "name": name,
        "scopes": list(scopes or SCOPES),
        "expires_at": rfc3339_or_none(expires_at),
    }
    print_key(made.api_key, made.key_id, facts, as_json=as_json)


async def _list(settings: Settings, organization_id: UUID | None, as_json: bool) -> None:
    from relay.auth import KeyListing, OrganizationNotFound, OwnedKey

    printed = print_objects if as_json else print_table
    async with opened(settings) as cell:
        listing = KeyListing(cell)
        if organization_id is None:
            async for page in listing.pages():
                printed(page)
            return
        try:
            found = await listing.describe(organization_id)
        except OrganizationNotFound:
            line = f"there is no organization {organization_id}, or none of its keys is in force"
            raise ExitWith(NOT_FOUND, line) from None
        printed([OwnedKey(found.organization_id, found.name, found.tier, key) for key in found.keys])


async def _reencrypt(settings: Settings) -> None:
    if not settings.secret_keys:
        raise ExitWith(USAGE, "RELAY_SECRET_KEY is not set: use the new secret and the old ones, separated by commas")
    from relay.auth import keyring
    from relay.endpoints import reencryption
    from relay.values.encryption import Vault

    vault = Vault(settings.secret_keys)
    async with opened(settings) as cell:
        done = (await keyring.reseal(cell, vault)).and_(await reencryption.reseal(cell, vault))
    click.echo(f"re-encrypted {done.moved} of {done.seals} seals")
    if done.unopened:
        raise ExitWith(
            USAGE, f"RELAY_SECRET_KEY: none of the secrets opens {done.unopened} of the seals; add the missing one"
        )
