"""The schemas of the inbox: reading and acknowledging."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from msgspec import UNSET, Meta, Struct, UnsetType

from relay.http.schemas.common import Cursor, Limit, Receipts, TypeFilter, Uuid


class InboxParameters(Struct, forbid_unknown_fields=True):
    """The filters and the order of an inbox page."""

    limit: Limit = 100
    status: Literal["pending", "delivered", "failed", "all"] = "pending"
    cursor: Cursor | None = None
    type: TypeFilter | None = None
    order: Literal["desc", "asc"] = "desc"
    wait: Annotated[
        float, Meta(ge=0, le=30, description="How many seconds an empty page is held back until there is an event.")
    ] = 0


class StreamParameters(Struct, forbid_unknown_fields=True):
    """The filter of a stream, and where it begins."""

    type: TypeFilter | None = None
    cursor: Cursor | None = None


class AckResponse(TypedDict):
    """The event is acknowledged."""

    success: Literal[True]


class AckManyRequest(Struct, forbid_unknown_fields=True):
    """Events to acknowledge, by their ids or by the receipts of their leases."""

    ids: Annotated[list[Uuid], Meta(max_length=1000, description="Either these or receipts.")] | UnsetType = UNSET
    receipts: Receipts | UnsetType = UNSET


class AckManyResponse(TypedDict):
    """The number of acknowledged events, and the ids that do not exist or the receipts without a live lease."""

    acknowledged: int
    not_found: list[str]
