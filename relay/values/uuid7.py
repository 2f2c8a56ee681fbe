"""UUIDv7 (RFC 9562, section 5.7): ids that sort by the time at which they were made."""

from __future__ import annotations

import datetime
import functools
import os
import re
import struct
import time
from collections.abc import Callable
from typing import Final
from uuid import UUID

_VERSION: Final = 0x7 << 76
_VARIANT: Final = 0b10 << 62
_TAIL: Final = (1 << 62) - 1
# One minute, in units of 2**-12 ms. If the clock steps back by more than this, ids follow it.
_MONOTONIC: Final = 60_000 << 12
# Random bits are drawn for 256 ids at a time. One system call per id would cost more than the rest of making it.
_WORDS: Final = struct.Struct(">256Q")
_HALVES: Final = struct.Struct(">QQ")
#: An event is committed within seconds after its id is made. Ids that differ by more than this sort like their commits.
COMMITTED_WITHIN_S: Final = 120.0
#: Nanoseconds of a monotonic clock. It includes time while the machine is suspended, if the system has such a clock.
steady_ns: Final[Callable[[], int]] = functools.partial(
    time.clock_gettime_ns, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
)
_PATTERN: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)


class Uuid7Clock:
    """Makes UUIDv7s that strictly increase within this process, even if the clock steps back by up to a minute.

    After a longer step ids follow the clock: an id of a day that has no partition could not be stored, and the order of
    events does not depend on ids. Random bits distinguish ids of the same moment in different processes.

    The 12 bits after the version contain the fraction of the millisecond (RFC 9562, section 6.2, method 3).

    Args:
        local_ns: reads a local clock in nanoseconds. `offset_ns` converts it to nanoseconds since 1970.
        kind: creates a UUID from its 16 bytes.
    """

    __slots__ = ("_kind", "_last", "_local_ns", "_random", "offset_ns")

    def __init__(
        self,
        local_ns: Callable[[], int] = time.time_ns,
        kind: Callable[[bytes], UUID] = lambda octets: UUID(bytes=octets),
    ) -> None:
        self._local_ns = local_ns
        self._kind = kind
        self._last = 0
        self._random: list[int] = []
        #: The difference between PostgreSQL's clock and the local one. The owner of a database connection sets it.
        self.offset_ns = 0

    def now_ns(self) -> int:
        """Return the time from which ids are made, in nanoseconds since 1970."""
        return self._local_ns() + self.offset_ns

    def new(self) -> UUID:
        """Return the next id."""
        # Units of 2**-12 ms: ns * 4096 / 1_000_000.
        tick = (self._local_ns() + self.offset_ns) * 4096 // 1_000_000
        if tick <= self._last < tick + _MONOTONIC:
            tick = self._last + 1
        self._last = tick
        if not self._random:
            self._random = [drawn & _TAIL | _VARIANT for drawn in _WORDS.unpack(os.urandom(_WORDS.size))]
        return self._kind(_HALVES.pack((tick >> 12) << 16 | 0x7000 | tick & 0xFFF, self._random.pop()))

    def some(self, count: int) -> list[UUID]:
        """Return the next ids from one reading of the clock. Each is one unit after the one before."""
        tick = (self._local_ns() + self.offset_ns) * 4096 // 1_000_000
        if tick <= self._last < tick + _MONOTONIC:
            tick = self._last + 1
        self._last = tick + count - 1
        heads: list[int] = []
        while tick <= self._last:
            # The heads of one millisecond are consecutive numbers, and a range is cheaper than building each.
            head = (tick >> 12) << 16 | 0x7000 | tick & 0xFFF
            following = min(self._last, tick | 0xFFF) + 1 - tick
            heads += range(head, head + following)
            tick += following
        while len(self._random) < count:
            self._random += [drawn & _TAIL | _VARIANT for drawn in _WORDS.unpack(os.urandom(_WORDS.size))]
        kind, pack, drawn = self._kind, _HALVES.pack, self._random.pop
        return [kind(pack(head, drawn())) for head in heads]


def parse(text: str) -> UUID | None:
    """Parse a UUIDv7 in the usual form of 36 characters. Return None if it is anything else."""
    return UUID(text) if _PATTERN.fullmatch(text) else None


def created_at(id_: UUID) -> datetime.datetime:
    """Return the time at which an id was made, in UTC, to the microsecond."""
    value = id_.int
    milliseconds = value >> 80
    fraction = (value >> 64) & 0xFFF
    micros = milliseconds * 1000 + fraction * 1000 // 4096
    return _EPOCH + datetime.timedelta(microseconds=micros)


def floor(moment: datetime.datetime) -> UUID:
    """Return the lowest UUIDv7 that can be made at or after `moment`, for partition bounds and `since`. A time before
    1970 counts as 1970.
    """
    micros = max(0, (moment - _EPOCH) // datetime.timedelta(microseconds=1))
    milliseconds, rest = divmod(micros, 1000)
    return UUID(int=milliseconds << 80 | _VERSION | -(-rest * 4096 // 1000) << 64 | _VARIANT)


def shifted(id_: UUID, by_s: float) -> UUID:
    """Return the id as if it had been made `by_s` seconds later, within the range of a UUID."""
    return UUID(int=min(max(id_.int + (round(by_s * 1000) << 80), 0), (1 << 128) - 1))


def delivery_id(event_id: UUID, endpoint_id: UUID) -> UUID:
    """Return the id of a delivery: the event's id, its last 62 bits XORed with those of the endpoint's id.

    It depends only on the two ids, so a flush that is sent twice opens each delivery once.
    """
    return UUID(int=event_id.int ^ (endpoint_id.int & _TAIL))


def events_of_delivery(id_: UUID) -> tuple[UUID, UUID]:
    """Return the lowest and highest id that the event of this delivery can have. They differ in their last 62 bits."""
    head = id_.int & ~_TAIL
    return UUID(int=head), UUID(int=head | _TAIL)


def bucket(endpoint_id: UUID) -> int:
    """Return the bucket (0..1023) of an endpoint: ten random bits of its id, which are as good as a hash."""
    return (endpoint_id.int >> 13) & 0x3FF


_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
