"""A run: faults one after the other, in an order that a seed determines, under load, with an audit after each."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from tests.faults.auditor import Account, Auditor
from tests.faults.faults import Fault
from tests.faults.load import Load
from tests.faults.scenario import Scene, stored_twice

#: The span over which a rate is taken, and the share of the rate before at which relay is as good as before.
_SPAN_S: Final = 5.0
# After an audit every producer is late, and asks at once.
_SETTLE_S: Final = 1.5
_AS_BEFORE: Final = 0.95
_TICK_S: Final = 0.1
#: How much goes on after each fault in the short form.
_SOME: Final = 100
#: After which a fault counts as not mended in the long form, and fails the short one.
PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Trial:
    """One fault and its result. Times are seconds after its end, rates are per second."""

    name: str
    account: Account
    #: When something was accepted again, and when something accepted since had arrived.
    accepted_after_s: float
    received_after_s: float
    #: The slowest 503 meanwhile.
    slowest_refusal_s: float
    #: Accepted and received; None where they were not measured.
    before: tuple[float, float] | None = None
    after: tuple[float, float] | None = None
    #: From the end of the fault to the first span that was as good as before; None when none was.
    as_before_s: float | None = None

    def __str__(self) -> str:
        account = self.account
        return (
            f"{self.name}: {account.acknowledged} acknowledged, {account.maybe} unknown of which"
            f" {account.recovered} are stored, {account.repeated} delivered again; accepts after"
            f" {self.accepted_after_s:.2f} s, delivers after {self.received_after_s:.2f} s,"
            f" slowest 503 {self.slowest_refusal_s:.2f} s"
        )


class Stalled(AssertionError):
    """Nothing is accepted any more, or nothing is delivered."""


P = TypeVar("P", bound=Scene)


class Campaign(Generic[P]):
    """Injects faults under load.

    Args:
        scene: where.
        load: what goes on meanwhile.
        seed: of all choices that faults make.
    """

    def __init__(self, scene: P, load: Load, seed: int) -> None:
        self._scene = scene
        self._load = load
        self._chance = random.Random(f"{seed}/faults")
        self._auditor = Auditor(
            [sender.organization_id for sender in scene.senders], [sender.paths for sender in scene.senders]
        )
        self._audited_at = time.time()

    async def warm_up(self) -> None:
        """Wait until 200 events have been accepted and 200 webhooks received."""
        ledger = self._scene.ledger
        await self._until(lambda: ledger.accepted > 200 and ledger.received > 200, "it never began")

    async def strike(self, fault: Fault[P], hold_s: float, *, measure: bool) -> Trial:
        """One fault.

        Args:
            fault: which.
            hold_s: how long it lasts.
            measure: whether to take rates before and after, which takes at least two spans.

        Raises:
            Stalled: it does not come back.
        """
        before = await self._rate(settle_s=_SETTLE_S) if measure else None
        ledger = self._scene.ledger
        ledger.slowest_refusal_s = 0.0
        await fault.strike(self._scene, self._chance, hold_s)
        ended = time.monotonic()
        accepted = ledger.accepted
        await self._until(lambda: ledger.accepted > accepted, f"nothing is accepted after: {fault.name}")
        accepted_after_s = time.monotonic() - ended
        received = ledger.received
        await self._until(lambda: ledger.received > received, f"nothing is delivered after: {fault.name}")
        received_after_s = time.monotonic() - ended
        if before:
            as_before_s, after = await self._as_before(before, ended)
        else:
            as_before_s, after = None, None
            more = f"it soon stops again after: {fault.name}"
            await self._until(lambda: min(ledger.accepted - accepted, ledger.received - received) > _SOME, more)
        refusal_s = ledger.slowest_refusal_s
        return Trial(
            fault.name, await self.audit(late=fault.late), accepted_after_s, received_after_s, refusal_s, before, after,
            as_before_s,
        )  # fmt: skip

    async def audit(self, *, late: bool = False) -> Account:
        """Pause the load and audit."""
        await self._load.rest()
        begun = time.time()
        books = await self._scene.books(self._audited_at, self._auditor.owed)
        account = self._auditor.audit(self._scene.ledger, books, late=late)
        self._audited_at = begun
        self._load.go_on()
        return account

    async def finish(self) -> Account:
        """Stop the load, wait until every delivery has ended, and audit once more."""
        await self._load.rest()
        connection = await self._scene.connect_patiently()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while await connection.fetchval("select exists (select from relay.open where due_at is not null)"):
                    await asyncio.sleep(0.05)
            account = await self.audit()
            await self._load.rest()
            if twice := await stored_twice(connection):
                account.duplicated.append(f"{twice} events of the whole run")
        finally:
            await connection.close()
        if len(self._auditor.owed) > 0:
            account.undelivered.append(f"{len(self._auditor.owed)} that still wait in the end")
        return account

    async def _until(self, condition: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            self._load.check()
            if time.monotonic() > deadline:
                raise Stalled(complaint)
            await asyncio.sleep(0.01)

    async def _rate(self, *, settle_s: float = 0.0) -> tuple[float, float]:
        await asyncio.sleep(settle_s)
        ledger = self._scene.ledger
        begun, accepted, received = time.monotonic(), ledger.accepted, ledger.received
        await asyncio.sleep(_SPAN_S)
        took_s = time.monotonic() - begun
        return (ledger.accepted - accepted) / took_s, (ledger.received - received) / took_s

    async def _as_before(self, before: tuple[float, float], ended: float) -> tuple[float | None, tuple[float, float]]:
        """Wait for an interval with the rates of before the fault, then measure one more."""
        ledger = self._scene.ledger
        points: deque[tuple[float, int, int]] = deque()
        while (now := time.monotonic()) - ended < PATIENCE_S:
            points.append((now, ledger.accepted, ledger.received))
            while now - points[0][0] > _SPAN_S:
                points.popleft()
                began, accepted, received = points[0]
                took_s = now - began
                rates = (ledger.accepted - accepted) / took_s, (ledger.received - received) / took_s
                if all(rate >= _AS_BEFORE * each for rate, each in zip(rates, before, strict=True)):
                    return began - ended, await self._rate()
            await asyncio.sleep(_TICK_S)
        return None, await self._rate()


def shuffled(faults: Sequence[Fault[P]], seed: int, *, disk: bool, round_: int = 0) -> list[Fault[P]]:
    """The faults in the order that the seed gives them in this round; `disk` says whether one can be filled."""
    possible = [fault for fault in faults if disk or not fault.disk]
    return random.Random(f"{seed}/order/{round_}").sample(possible, len(possible))
