"""The limits of one claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from relay.delivery.capacity.organization_quota import EVERYTHING, Allotment

_NONE: Final[Mapping[UUID, Allotment]] = {}


class ClaimBudget(NamedTuple):
    """The limits of one claim.

    Attributes:
        batch: deliveries in total.
        endpoint_ids: the known endpoints.
        free: their free slots. `CLOSED` is one slot if the row shows a closed breaker, else none.
        first: the slots of every other endpoint.
        is_new: whether each known endpoint is still new.
        is_slow: whether each known endpoint is slow.
        left: what organizations with deliveries in flight may claim.
        untouched: what every other organization may claim.
        bytes: payload bytes for all organizations together.
        suspects: whether to claim deliveries that may be what kills their process.
    """

    batch: int
    endpoint_ids: list[UUID]
    free: list[int]
    first: int
    is_new: Sequence[bool] = ()
    is_slow: Sequence[bool] = ()
    left: Mapping[UUID, Allotment] = _NONE
    untouched: Allotment = EVERYTHING
    bytes: int = EVERYTHING.bytes
    suspects: bool = True
