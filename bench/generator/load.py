"""Load: an open loop on a schedule, or a closed loop as fast as responses come."""

from __future__ import annotations

import os
import socket
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from gevent.event import Event

from bench.generator.feed import Feed
from bench.generator.plan import Plan
from bench.generator.schedule import bursts, even, poisson
from bench.generator.tally import Tally
from bench.generator.timer import Timer
from bench.generator.traffic import Outgoing, Traffic
from bench.generator.wire import Connection

#: How long answers may take after the last request was due.
DRAIN_S = 30.0

_monotonic = time.monotonic


class Load(ABC):
    """One run over one set of connections; `run` returns when it is over.

    Args:
        plan: how much, how long.
        traffic: what is sent.
        feed: told of each answer, counted or not.
    """

    def __init__(self, plan: Plan, traffic: Traffic, feed: Feed) -> None:
        self.tally = Tally()
        self.began = 0.0
        self.ended = 0.0
        self.cpu_s = 0.0
        self.opened = 0
        self._plan = plan
        self._next = traffic.next
        self._feed = feed
        self._address = _resolve(plan.host, plan.port)
        self._all: set[Connection] = set()
        self._over = Event()
        self._cpu_began = 0.0

    def run(self) -> None:
        """Send everything, and wait for the responses."""
        try:
            for _ in range(self._plan.connections):
                self._ready(self._open())
            self._start()
            self._over.wait()
        finally:
            for connection in self._all:
                connection.close()
            self._all.clear()

    @abstractmethod
    def _start(self) -> None:
        """Begin to send."""

    @abstractmethod
    def _ready(self, connection: Connection) -> None:
        """Note that a connection is idle."""

    def _gone(self, connection: Connection) -> None:  # noqa: B027 - not every load minds
        """Note that a connection has ended."""

    def _open(self) -> Connection:
        connection = Connection(self._address, self._answered, self._ended)
        self._all.add(connection)
        self.opened += 1
        return connection

    def _send(self, connection: Connection, counted_from: float) -> None:
        outgoing = self._next()
        connection.context = (outgoing, counted_from)
        connection.send(outgoing.data)

    def _answered(self, connection: Connection, status: bytes, body: bytes) -> None:
        now = _monotonic()
        outgoing: Outgoing
        outgoing, counted_from = connection.context
        connection.context = None
        wrong = outgoing.check(status, body)
        latency_s = now - counted_from
        if wrong is not None:
            self.tally.failures[wrong] += 1
        elif counted_from >= self.began:
            self.tally.count(outgoing.kind, now, latency_s)
        self._feed(outgoing.kind, latency_s * 1000, len(body), wrong)
        self._ready(connection)

    def _ended(self, connection: Connection, why: str) -> None:
        self._all.discard(connection)
        if connection.context is not None:
            outgoing: Outgoing = connection.context[0]
            self.tally.drops += 1
            self.tally.failures[f"connection {why}"] += 1
            self._feed(outgoing.kind, 0.0, 0, f"connection {why}")
        self._gone(connection)

    def _begin_counting(self) -> None:
        self._cpu_began = time.process_time()

    def _end_counting(self) -> None:
        self.cpu_s = time.process_time() - self._cpu_began


class OpenLoop(Load):
    """Sends each request when it is due, regardless of the requests before."""

    def __init__(self, plan: Plan, traffic: Traffic, feed: Feed, rate: float) -> None:
        super().__init__(plan, traffic, feed)
        self._due = _due(plan, rate)
        self._at = 0
        self._idle: list[Connection] = []
        self._waiting: deque[float] = deque()
        self._under_way = 0
        self._timer = Timer(_guarded(self._ring, self._over))
        self._counting = False
        self._deadline = 0.0

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._timer.close()
        if not self.cpu_s:
            self._end_counting()

    def _start(self) -> None:
        start = _monotonic() + 0.05
        self._due = [start + offset for offset in self._due]
        self.began = start + self._plan.warm_up_s
        self.ended = self.began + self._plan.seconds
        self._deadline = self.ended + DRAIN_S
        self._timer.set(self._due[0] if self._due else start)

    def _ring(self) -> None:
        due, now = self._due, _monotonic()
        if now > self._deadline:
            self.tally.drops += len(self._waiting) + self._under_way
            self.tally.failures["no answer"] += self._under_way
            self._over.set()
            return
        while self._at < len(due) and due[self._at] <= now:
            if not self._counting and due[self._at] >= self.began:
                self._counting = True
                self._begin_counting()
            self._begin(due[self._at])
            self._at += 1
            now = _monotonic()
        while self._waiting and len(self._all) < self._plan.most_connections:
            self._under_way += 1
            self._send(self._open(), self._waiting.popleft())
        if self._at < len(due):
            self._timer.set(due[self._at])
        elif now < self.ended:
            self._timer.set(self.ended)
        else:
            if not self.cpu_s:
                self._end_counting()
            self._timer.set(self._deadline)
            self._end_if_done()

    def _begin(self, due: float) -> None:
        if self._idle:
            connection = self._idle.pop()
        elif len(self._all) < self._plan.most_connections:
            connection = self._open()
        else:
            self.tally.held += due >= self.began
            self._waiting.append(due)
            return
        self._under_way += 1
        if due >= self.began:
            self.tally.late_s.append(_monotonic() - due)
        self._send(connection, due)

    def _ready(self, connection: Connection) -> None:
        if not self.began:
            self._idle.append(connection)
            return
        self._under_way -= 1
        if self._waiting:
            self._under_way += 1
            self._send(connection, self._waiting.popleft())
            return
        self._idle.append(connection)
        self._end_if_done()

    def _gone(self, connection: Connection) -> None:
        if connection.context is None:
            self._idle.remove(connection)
            return
        self._under_way -= 1
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._at == len(self._due) and not self._under_way and not self._waiting and _monotonic() >= self.ended:
            self._over.set()


def _due(plan: Plan, rate: float) -> list[float]:
    seconds = plan.warm_up_s + plan.seconds
    match plan.arrivals:
        case "poisson":
            return poisson(rate, seconds, plan.seed)
        case "even":
            return even(rate, seconds)
        case "bursts":
            return bursts(rate, seconds, plan.burst)


class ClosedLoop(Load):
    """Sends the next request on a connection when the one before got a response: the maximum rate of a server."""

    def __init__(self, plan: Plan, traffic: Traffic, feed: Feed) -> None:
        super().__init__(plan, traffic, feed)
        self._timer = Timer(_guarded(self._ring, self._over))
        self._marks: deque[float] = deque()

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._timer.close()

    def _start(self) -> None:
        self.began = _monotonic() + self._plan.warm_up_s
        self.ended = self.began + self._plan.seconds
        self._marks.extend((self.began, self.ended, self.ended + DRAIN_S))
        self._timer.set(self._marks[0])
        for connection in list(self._all):
            self._send(connection, _monotonic())

    def _ring(self) -> None:
        self._marks.popleft()
        if len(self._marks) == 2:
            self._begin_counting()
        elif len(self._marks) == 1:
            self._end_counting()
        else:
            self.tally.drops += len(self._all)
            self._over.set()
            return
        self._timer.set(self._marks[0])

    def _ready(self, connection: Connection) -> None:
        if not self.began:
            return
        now = _monotonic()
        if now < self.ended:
            self._send(connection, now)
            return
        self._all.discard(connection)
        connection.close()
        self._end_if_done()

    def _gone(self, connection: Connection) -> None:
        self._end_if_done()

    def _end_if_done(self) -> None:
        if not self._all:
            self._over.set()


def _guarded(ring: Callable[[], None], over: Event) -> Callable[[], None]:
    """End the run if a callback raises. Gevent would print it and continue."""

    def guarded() -> None:
        try:
            ring()
        except BaseException:
            over.set()
            raise

    return guarded


def _resolve(host: str, port: int) -> tuple[str, int]:
    address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4]
    return str(address[0]), int(address[1])


def go_first() -> str:
    """Take precedence over the processes under test if possible: a generator that waits for a core is late."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        return "real time"
    except OSError:
        return "as all others"
