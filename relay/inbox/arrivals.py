"""The waiting readers of one organization, and which of them a new event concerns."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self
from uuid import UUID

from relay.store import Row
from relay.values import cursor, type_filters
from relay.values.cursor import Position

#: The filter that every type matches.
ALL_TYPES: Final = ("",)

Horizon = tuple[int, int]


class Woken(enum.Enum):
    """The reason for which a waiter goes on."""

    MATCH = "match"
    TIMEOUT = "timeout"
    STOPPING = "stopping"
    LEFT = "left"


class Waiter:
    """One reader that waits for events. Made by `Waiters.register`, before its first read; to be used in a `with`.

    An event that comes between that read and `wait` is not lost: `wait` then returns at once.

    Args:
        owner: of all waiters of the organization.
        filters: types that it waits for: exact ones, `order.*`, or the empty one for all.
        sees_above: whether it also sees what is above the horizon, as readers do that list the newest first.
        group: of competing readers: a new event wakes only one of each, and that one wakes the next when it is done.
    """

    __slots__ = (
        "_after",
        "_future",
        "_has_left",
        "_owner",
        "_pending",
        "_timer",
        "filters",
        "group",
        "has_turn",
        "matched_at",
        "sees_above",
        "unread_bytes",
    )

    def __init__(
        self, owner: OrganizationWaiters, filters: Sequence[str], *, sees_above: bool, group: str | None
    ) -> None:
        self._owner = owner
        self.filters = filters
        self.sees_above = sees_above
        self.group = group
        #: Payload bytes of matching events that came since this was last set to 0.
        self.unread_bytes = 0
        #: When it was registered, or there may have been something for it last, in the event loop's time.
        self.matched_at = asyncio.get_running_loop().time()
        #: Whether it was woken for its group, and has not said yet that there was nothing.
        self.has_turn = False
        self._after: Position | None = None
        self._pending = False
        self._has_left = False
        self._future: asyncio.Future[Woken] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._owner.leave(self)

    async def wait(self, after: Position, until: float) -> Woken:
        """Wait until there may be an event after a position, or the time is over.

        Args:
            after: where the last read ended.
            until: in the event loop's time.
        """
        if (ended := self.ended) is not None:
            return ended
        if self._pending:
            self._pending = False
            return Woken.MATCH
        self.has_turn = False
        loop = asyncio.get_running_loop()
        self._after = after
        self._future = loop.create_future()
        self._timer = loop.call_at(until, self.end, Woken.TIMEOUT)
        try:
            return await self._future
        finally:
            self._timer.cancel()
            self._future = self._timer = self._after = None

    def end(self, why: Woken) -> None:
        """Let it go on, if it waits."""
        if self._future is not None and not self._future.done():
            self._future.set_result(why)

    def leave(self) -> None:
        """End its wait for good: the client has gone."""
        self._has_left = True
        self.end(Woken.LEFT)

    @property
    def ended(self) -> Woken | None:
        """Return why it does not wait any more: the client has left, or the process stops. None: it may go on."""
        if self._has_left:
            return Woken.LEFT
        return Woken.STOPPING if self._owner.is_stopping else None

    @property
    def is_waiting(self) -> bool:
        """Return whether it waits at this moment."""
        return self._future is not None and not self._future.done()

    def is_behind(self, position: Position) -> bool:
        """Return whether an event at this position may be new to it."""
        return self._after is None or self._after < position

    def match(self) -> None:
        """Wake it, or let its next wait end at once: there may be something for it."""
        self.has_turn = True
        if self.is_waiting:
            self._pending = False
            self.end(Woken.MATCH)
        else:
            self._pending = True


class _Match(NamedTuple):
    """The new events for one filter: the last position, and the bytes of all payloads."""

    last: Position
    size: int


class OrganizationWaiters:
    """All waiters of one organization in this process.

    Args:
        organization_id: whose.
        horizon: events below it are known to every reader from now on.
        is_stopping: whether the process stops.
        emptied: called when the last one has left.
    """

    def __init__(
        self,
        organization_id: UUID,
        horizon: Horizon,
        *,
        is_stopping: Callable[[], bool],
        emptied: Callable[[UUID], None],
    ) -> None:
        self.organization_id = organization_id
        #: Everything below has been looked at.
        self.horizon = horizon
        #: Until when it is not looked at, in the event loop's time.
        self.rests_until = 0.0
        self._is_stopping = is_stopping
        self._emptied = emptied
        self._waiters: dict[Waiter, None] = {}
        self._by_filter: dict[str, dict[Waiter, None]] = {}
        self._groups: dict[str, dict[Waiter, None]] = {}
        # Events above the horizon that were there the last time.
        self._above: frozenset[UUID] = frozenset()

    def __len__(self) -> int:
        return len(self._waiters)

    @property
    def is_stopping(self) -> bool:
        """Return whether waiting has ended for good."""
        return self._is_stopping()

    @property
    def is_held(self) -> bool:
        """Return whether there are events that will be visible to all as soon as the horizon passes them."""
        return bool(self._above)

    def add(self, filters: Sequence[str], *, sees_above: bool, group: str | None) -> Waiter:
        """Return a new waiter."""
        waiter = Waiter(self, filters, sees_above=sees_above, group=group)
        self._waiters[waiter] = None
        for each in filters:
            self._by_filter.setdefault(each, {})[waiter] = None
        if group is not None:
            self._groups.setdefault(group, {})[waiter] = None
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Forget a waiter. If it had its group's turn, the next one has it."""
        if waiter not in self._waiters:
            return
        del self._waiters[waiter]
        for each in waiter.filters:
            _discard(self._by_filter, each, waiter)
        if waiter.group is not None:
            _discard(self._groups, waiter.group, waiter)
            if waiter.has_turn:
                self.wake_group(waiter.group)
        if not self._waiters:
            self._emptied(self.organization_id)

    def wake_group(self, group: str) -> None:
        """Wake the one of a group that has waited longest."""
        for waiter in self._groups.get(group, ()):
            if waiter.is_waiting:
                waiter.match()
                return

    @property
    def groups(self) -> Collection[str]:
        """Return the names of the groups that have waiters."""
        return self._groups.keys()

    def wake_groups(self) -> None:
        """Wake the one of each group that has waited longest."""
        for group in list(self._groups):
            self.wake_group(group)

    def all(self) -> list[Waiter]:
        """Return all waiters."""
        return list(self._waiters)

    def arrived(self, rows: Sequence[Row], horizon: Horizon, limit: int) -> list[Waiter]:
        """Return whom to wake.

        Args:
            rows: of `new_events`, the newest first.
            horizon: of the same snapshot.
            limit: as many rows at most. Where there are more, whoever might have missed one is woken too.
        """
        visible: dict[str, _Match] = {}
        fresh: dict[str, _Match] = {}
        above = set()
        oldest = cursor.LAST
        for row in rows:
            position = oldest = Position(row["epoch"], row["xid"], row["event_id"])
            if position.event_id not in self._above:
                _note(fresh, row["type"], _Match(position, row["size"]))
            if position[:2] < horizon:
                _note(visible, row["type"], _Match(position, row["size"]))
            else:
                above.add(position.event_id)
        woken: dict[Waiter, None] = {}
        if len(rows) == limit and (horizon > self.horizon or self._above.isdisjoint(above)):
            woken.update((waiter, None) for waiter in self._waiters if waiter.is_behind(oldest))
        for each, match in self._by_filters(visible):
            for waiter in self._by_filter[each]:
                if not waiter.sees_above and waiter.is_behind(match.last):
                    waiter.unread_bytes += match.size
                    woken[waiter] = None
        for each, match in self._by_filters(fresh):
            for waiter in self._by_filter[each]:
                if waiter.sees_above and waiter.is_behind(match.last):
                    woken[waiter] = None
        self.horizon = horizon
        self._above = frozenset(above)
        return self._one_of_each_group(woken)

    def _by_filters(self, matches: Mapping[str, _Match]) -> Iterable[tuple[str, _Match]]:
        """Return what is new for each filter that a waiter has, from what is new of each type."""
        found: dict[str, _Match] = {}
        for type_, match in matches.items():
            for each in type_filters.matching(type_):
                if each in self._by_filter:
                    _note(found, each, match)
        return found.items()

    def _one_of_each_group(self, woken: Iterable[Waiter]) -> list[Waiter]:
        taken: set[str] = set()
        chosen = []
        for waiter in woken:
            if waiter.group is not None:
                if waiter.group in taken:
                    continue
                taken.add(waiter.group)
            chosen.append(waiter)
        return chosen


def _note(matches: dict[str, _Match], key: str, match: _Match) -> None:
    before = matches.get(key)
    matches[key] = match if before is None else _Match(max(before.last, match.last), before.size + match.size)


def _discard(sets: dict[str, dict[Waiter, None]], key: str, waiter: Waiter) -> None:
    found = sets.get(key)
    if found is not None:
        found.pop(waiter, None)
        if not found:
            del sets[key]
