"""The parameters that a flush of several events has in all of its statements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from relay.ingest.filters import filters_matching

# Between the filters of one event and those of the next; no type contains a control character.
_NEXT_FILTERS: Final = "\x1e"
_NEXT_TYPE: Final = "\x1f"

#: Organization ids, event ids, types, payloads, and the filters that match the types.
Columns = tuple[Sequence[UUID], Sequence[UUID], str, Sequence[bytes], str]


def columns_of(
    organization_ids: Sequence[UUID], event_ids: Sequence[UUID], types: Sequence[str], payloads: Sequence[bytes]
) -> Columns:
    """Return the columns of a flush: what belongs to one event stands at the same place of each.

    Types and filters are one text each, which PostgreSQL cuts in no more time than it takes to read an array. asyncpg
    asks of each element of an array whether it is an array itself, by `isinstance` with abstract classes: with two
    arrays of texts less, an event of 300 is encoded in 1.0 µs instead of 1.5 (medians of seven turns). Ids stay arrays,
    because as text they cost PostgreSQL more than they save here.
    """
    return (
        organization_ids,
        event_ids,
        _NEXT_TYPE.join(types),
        payloads,
        # An empty text stands for null.
        _NEXT_FILTERS.join([filters_matching(type_) or "" for type_ in types]),
    )
