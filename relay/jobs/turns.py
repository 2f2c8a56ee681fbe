"""The running turns of jobs, and the limits on them."""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import UUID

from relay.jobs.batches import ClaimedJob

#: Before every organization.
FIRST: Final = UUID(int=0)
# The limit of jobs that wait for their deliveries to be attempted. These hold no slot.
_MOST_WAITING: Final = 100


class Turns:
    """The running turns of one group of jobs.

    Args:
        is_internal: True for jobs from endpoint changes, False for jobs from API requests.
        slots: the limit of concurrent turns.
    """

    def __init__(self, *, is_internal: bool, slots: int) -> None:
        self.is_internal = is_internal
        self._slots = slots
        self._jobs: dict[asyncio.Task[None], ClaimedJob] = {}
        self._waiting: set[asyncio.Task[None]] = set()
        #: The organization of the latest turn.
        self.last = FIRST

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """The tasks of the turns."""
        return {*self._jobs}

    @property
    def organizations(self) -> list[UUID]:
        """Return the organizations with a running turn."""
        return [job.organization_id for job in self._jobs.values()]

    @property
    def has_slot(self) -> bool:
        """True if another turn may begin."""
        return len(self._jobs) - len(self._waiting) < self._slots and len(self._waiting) < _MOST_WAITING

    def begin(self, task: asyncio.Task[None], job: ClaimedJob) -> None:
        """Take a slot for a turn."""
        self._jobs[task] = job
        self.last = job.organization_id

    def wait(self) -> None:
        """Release the slot of the calling turn, which has nothing left to do but wait."""
        task = asyncio.current_task()
        if task in self._jobs:
            self._waiting.add(task)

    def end(self, task: asyncio.Task[None]) -> None:
        """Release what a turn has taken."""
        del self._jobs[task]
        self._waiting.discard(task)
