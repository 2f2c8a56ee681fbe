"""The rows that retention loses: found, deleted, counted and logged by organization."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Final, Literal
from uuid import UUID

from relay.store import Cell, Row
from relay.telemetry.metrics import Metrics
from relay.values.cursor import FIRST
from relay.values.uuid7 import COMMITTED_WITHIN_S, shifted

_log = logging.getLogger("relay.upkeep")

#: An open delivery, an event without its acknowledgement, a failed delivery.
Kind = Literal["delivery", "unacknowledged", "dead_letter"]

_NIL: Final = UUID(int=0)
# With these limits each statement takes well under a second, and deletions hold locks for milliseconds.
_ORGANIZATIONS: Final = 500
_EXAMINED: Final = 5000
_DELETED: Final = 500
_DEAD_LETTERS: Final = 10_000


class Losses:
    """A scan of `open` by its primary key.

    The key sorts an organization's rows in commit order. The scan ends at younger events, so its cost depends on the
    number of old rows, not of open rows.

    Args:
        cell: the cell.
        metrics: the process's metrics.
    """

    def __init__(self, cell: Cell, metrics: Metrics) -> None:
        self._cell = cell
        self._lost = metrics.counter(
            "relay_retention_lost", "Rows that retention lost: delivery, unacknowledged, dead_letter.", "kind"
        )

    async def has_deliveries(self, low: UUID, high: UUID) -> bool:
        """Return whether deliveries of events from `low` up to `high` are open.

        Raises:
            StoreError: the database does not respond.
        """
        async for organization_id in self._organizations(high):
            place: tuple[object, ...] = (*FIRST, _NIL)
            while True:
                (row,) = await self._cell.fetch_on_control_connection(
                    "open_of_day", organization_id, *place, low, high, _EXAMINED
                )
                if row["deliveries"]:
                    return True
                if _is_complete(row, _EXAMINED, high):
                    break
                place = _place(row)
        return False

    async def forget_open(self, low: UUID, high: UUID, *, deliveries: bool) -> None:
        """Delete the open rows of events from `low` up to `high`, or only those that wait for acknowledgements.

        Raises:
            StoreError: at most a part of the rows was deleted.
        """
        async for organization_id in self._organizations(high):
            lost: dict[Kind, int] = {"delivery": 0, "unacknowledged": 0}
            place: tuple[object, ...] = (*FIRST, _NIL)
            try:
                while True:
                    (row,) = await self._cell.fetch_on_control_connection(
                        "forget_open", organization_id, *place, low, high, deliveries, _DELETED
                    )
                    lost["delivery"] += row["deliveries"]
                    lost["unacknowledged"] += row["unacknowledged"]
                    if _is_complete(row, _DELETED, high):
                        break
                    place = _place(row)
            finally:
                for kind, number in lost.items():
                    self.count(kind, organization_id, number)

    async def dead_letters(self, low: UUID, high: UUID) -> dict[UUID, int]:
        """Count the failed deliveries of events from `low` up to `high` by organization.

        Raises:
            StoreError: the database does not respond.
        """
        found: dict[UUID, int] = {}
        place = (_NIL, _NIL, _NIL)
        while rows := await self._cell.fetch_on_control_connection(
            "dead_letters_of_day", *place, low, high, _DEAD_LETTERS
        ):
            for row in rows:
                organization_id = row["organization_id"]
                found[organization_id] = found.get(organization_id, 0) + row["dead_letters"]
            last = rows[-1]
            place = (last["last_organization_id"], last["last_event_id"], last["last_endpoint_id"])
        return found

    def count(self, kind: Kind, organization_id: UUID, number: int) -> None:
        """Count and log lost rows."""
        if number:
            self._lost.add(number, kind)
            _log.warning(
                "lost_to_retention", extra={"organization_id": str(organization_id), "kind": kind, "lost": number}
            )

    async def _organizations(self, high: UUID) -> AsyncIterator[UUID]:
        """Yield the organizations whose oldest open row may belong to an event before `high`."""
        after = _NIL
        while True:
            rows = await self._cell.fetch_on_control_connection(
                "organizations_with_open", after, shifted(high, COMMITTED_WITHIN_S), _ORGANIZATIONS
            )
            for row in rows:
                if row["is_old"]:
                    yield row["organization_id"]
            if len(rows) < _ORGANIZATIONS:
                return
            after = rows[-1]["organization_id"]


def _is_complete(row: Row, most: int, high: UUID) -> bool:
    """Return whether no further row belongs to an event before `high`."""
    return bool(row["looked_at"] < most or row["event_id"] >= shifted(high, COMMITTED_WITHIN_S))


def _place(row: Row) -> tuple[object, ...]:
    return row["epoch"], row["xid"], row["event_id"], row["endpoint_id"]
