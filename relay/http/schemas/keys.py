"""Organizations and their keys as requests name them and answers show them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from relay.http.schemas.common import Tier, Time, Uuid


class OrganizationCreate(Struct, forbid_unknown_fields=True):
    """A new organization; `org_name` is another name for `organization_name`."""

    organization_name: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    org_name: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    tier: Tier = "free"


class OrganizationCreated(Struct):
    """The organization and its key, which is shown this once."""

    api_key: str
    organization_id: Uuid
    organization_name: str
    tier: Tier


class ApiKey(Struct):
    """A key, without its secret."""

    key_id: Uuid
    name: str
    scopes: list[str]
    created_at: Time
    last_used_at: Time | None
    expires_at: Time | None


class ApiKeyList(Struct):
    """The caller's organization."""

    organization_id: Uuid
    organization_name: str
    tier: Tier
    rate_limit_per_minute: int
    webhook_url: str | None
    keys: list[ApiKey]


class ApiKeyCreate(Struct, forbid_unknown_fields=True):
    """A key to make; without scopes it may do everything, without an end it is good until it is revoked."""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=255,
            extra_json_schema={"pattern": r"^[^\u0000-\u001f\u007f-\u009f]+$"},
            description="For people; need not be unique.",
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
            Meta(extra_json_schema={"format": "date-time"}, description="RFC 3339 with an offset: when it ends."),
        ]
        | None
    ) = None


class ApiKeyCreated(Struct):
    """The key, which is shown this once."""

    api_key: str
    key_id: Uuid


class ApiKeyRotate(Struct, forbid_unknown_fields=True):
    """How long the old key still works beside the new one."""

    overlap_s: Annotated[int, Meta(ge=0, le=604_800)] = 0


class ApiKeyRotated(Struct):
    """The new key, which is shown this once."""

    api_key: str
    key_id: Uuid
    previous_expires_at: Time
