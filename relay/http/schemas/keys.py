"""The schemas of organizations and their keys."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from msgspec import UNSET, Meta, Struct, UnsetType

from relay.http.schemas.common import Tier, Time, Uuid


class OrganizationCreate(Struct, forbid_unknown_fields=True):
    """A new organization. `org_name` is another name for `organization_name`."""

    organization_name: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    org_name: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    tier: Tier = "free"


class OrganizationCreated(TypedDict):
    """The organization and its key, which is shown only once."""

    api_key: str
    organization_id: Uuid
    organization_name: str
    tier: Tier


class ApiKey(TypedDict):
    """A key, without its secret."""

    key_id: Uuid
    name: str
    scopes: list[str]
    created_at: Time
    last_used_at: Time | None
    expires_at: Time | None


class ApiKeyList(TypedDict):
    """The caller's organization."""

    organization_id: Uuid
    organization_name: str
    tier: Tier
    rate_limit_per_minute: int | None
    webhook_url: str | None
    keys: list[ApiKey]


class ApiKeyCreate(Struct, forbid_unknown_fields=True):
    """A key to create. Without scopes it has all of them, and without an expiry it does not expire."""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=255,
            extra_json_schema={"pattern": r"^[^\u0000-\u001f\u007f-\u009f]+$"},
            description="For people. It need not be unique.",
        ),
    ]
    scopes: (
        Annotated[
            list[Literal["ingest", "consume", "manage"]],
            Meta(min_length=1, max_length=3, extra_json_schema={"uniqueItems": True}),
        ]
        | UnsetType
    ) = UNSET
    expires_at: (
        Annotated[
            str,
            Meta(extra_json_schema={"format": "date-time"}, description="The expiry: RFC 3339 with an offset."),
        ]
        | None
    ) = None


class ApiKeyCreated(TypedDict):
    """The key, which is shown only once."""

    api_key: str
    key_id: Uuid


class ApiKeyRotate(Struct, forbid_unknown_fields=True):
    """The time in seconds for which the old key stays valid."""

    overlap_s: Annotated[int, Meta(ge=0, le=604_800)] = 0


class ApiKeyRotated(TypedDict):
    """The new key, which is shown only once."""

    api_key: str
    key_id: Uuid
    previous_expires_at: Time
