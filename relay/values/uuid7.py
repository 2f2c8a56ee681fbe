"""UUIDv7 (RFC 9562, section 5.7): ids that sort by the time they were made."""

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
# Random bits are drawn for this many ids at a time: a system call an id costs more than the rest of it.
# A step back by more is followed: a minute, in steps of 2**-12 ms.
_MONOTONIC: Final = 60_000 << 12
_WORDS: Final = struct.Struct(">256Q")
_HALVES: Final = struct.Struct(">QQ")
#: An event is committed within seconds of the making of its id: this far apart the order of ids is that of commits.
COMMITTED_WITHIN_S: Final = 120.0
#: Nanoseconds of a clock that nobody sets and no time server steps; it goes on while the machine sleeps where the
#: system has one that does.
steady_ns: Final[Callable[[], int]] = functools.partial(
    time.clock_gettime_ns, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
)
_PATTERN: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)


class Uuid7Clock:
    """Makes UUIDv7s that strictly increase within this process, also when the clock steps back by up to a minute. After
    a longer step they follow it: an id of a day that is over, or not there yet, could not be stored, and the order of
    events is that of their positions. Random bits tell ids of the same moment apart.

    The 12 bits after the version carry the fraction of the millisecond (RFC 9562, section 6.2, method 3).

    Args:
        local_ns: reads a local clock in nanoseconds; `offset_ns` makes those since 1970 of it.
        kind: makes a UUID of its 16 bytes.
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
        #: What to add to the local clock to have PostgreSQL's; the owner of a database connection sets it.
        self.offset_ns = 0

    def now_ns(self) -> int:
        """The time from which ids are made, in nanoseconds since 1970."""
        return self._local_ns() + self.offset_ns

    def new(self) -> UUID:
        """The next id."""
        # 2**-12 ms steps: ns * 4096 / 1_000_000.
        tick = (self._local_ns() + self.offset_ns) * 4096 // 1_000_000
        if tick <= self._last < tick + _MONOTONIC:
            tick = self._last + 1
        self._last = tick
        if not self._random:
            self._random = [drawn & _TAIL | _VARIANT for drawn in _WORDS.unpack(os.urandom(_WORDS.size))]
        return self._kind(_HALVES.pack((tick >> 12) << 16 | 0x7000 | tick & 0xFFF, self._random.pop()))

    def some(self, count: int) -> list[UUID]:
        """Return the next ids by one look at the clock; they follow each other at its smallest step."""
        tick = (self._local_ns() + self.offset_ns) * 4096 // 1_000_000
        if tick <= self._last < tick + _MONOTONIC:
            tick = self._last + 1
        self._last = tick + count - 1
        heads: list[int] = []
        while tick <= self._last:
            # The heads of one millisecond are consecutive numbers: to count on is cheaper than to put each together.
            head = (tick >> 12) << 16 | 0x7000 | tick & 0xFFF
            following = min(self._last, tick | 0xFFF) + 1 - tick
            heads += range(head, head + following)
            tick += following
        while len(self._random) < count:
            self._random += [drawn & _TAIL | _VARIANT for drawn in _WORDS.unpack(os.urandom(_WORDS.size))]
        kind, pack, drawn = self._kind, _HALVES.pack, self._random.pop
        return [kind(pack(head, drawn())) for head in heads]


def parse(text: str) -> UUID | None:
    """The UUIDv7 written in `text` in the usual 36 characters, or None when it is anything else."""
    return UUID(text) if _PATTERN.fullmatch(text) else None


def created_at(id_: UUID) -> datetime.datetime:
    """The time an id was made, in UTC, to the microsecond."""
    value = id_.int
    milliseconds = value >> 80
    fraction = (value >> 64) & 0xFFF
    micros = milliseconds * 1000 + fraction * 1000 // 4096
    return _EPOCH + datetime.timedelta(microseconds=micros)


def floor(moment: datetime.datetime) -> UUID:
    """The least UUIDv7 that could have been made at or after `moment`: partition bounds and `since`. Before 1970
    there were none.
    """
    micros = max(0, (moment - _EPOCH) // datetime.timedelta(microseconds=1))
    milliseconds, rest = divmod(micros, 1000)
    return UUID(int=milliseconds << 80 | _VERSION | -(-rest * 4096 // 1000) << 64 | _VARIANT)


def shifted(id_: UUID, by_s: float) -> UUID:
    """The id as it would be, made so many seconds later; at most and at least what a UUID can be."""
    return UUID(int=min(max(id_.int + (round(by_s * 1000) << 80), 0), (1 << 128) - 1))


def delivery_id(event_id: UUID, endpoint_id: UUID) -> UUID:
    """The id of the one delivery of an event to an endpoint: the event's, its last 62 bits XORed with the endpoint's.

    A function of both ids, so a flush that is sent twice opens no delivery twice.
    """
    return UUID(int=event_id.int ^ (endpoint_id.int & _TAIL))


def events_of_delivery(id_: UUID) -> tuple[UUID, UUID]:
    """The least and the greatest id that the event of this delivery may have: they differ in their last 62 bits."""
    head = id_.int & ~_TAIL
    return UUID(int=head), UUID(int=head | _TAIL)


def bucket(endpoint_id: UUID) -> int:
    """The bucket (0..1023) of an endpoint: ten bits of its random tail, which are as good as a hash of it."""
    return (endpoint_id.int >> 13) & 0x3FF


_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
