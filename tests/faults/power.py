"""A power failure: what PostgreSQL has on disk afterwards is what it flushed, and nothing of what it only wrote.

A process that is killed proves nothing about that, because the page cache of the kernel outlives it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final

import asyncpg

from relay.local.postgres import EmbeddedPostgres
from tests.support.processes import children_of

# As `relay up` makes its clusters.
_SEGMENT: Final = 4 * 1024 * 1024
_SEGMENTS_PER_LOG: Final = 2**32 // _SEGMENT


class Power:
    """The disk of a PostgreSQL, before and after.

    The worst that may be left of it: data files as the last checkpoint before the load left them, with none of the
    pages that were written since, and write-ahead log up to the position that was flushed, with zeros behind it.

    Args:
        postgres: entered.
        home: its folder.
        after: where its remains are put together; must not exist.
    """

    def __init__(self, postgres: EmbeddedPostgres, home: Path, after: Path) -> None:
        self._postgres = postgres
        self._home = home
        self._after = after

    async def keep_what_is_on_disk(self, connection: asyncpg.Connection) -> None:
        """Checkpoint, and copy everything while every process stands still."""
        await connection.execute("checkpoint")
        processes = [self._postgres.pid, *children_of(self._postgres.pid)]
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        try:
            _copy(self._home, self._after)
        finally:
            for pid in processes:
                os.kill(pid, signal.SIGCONT)

    async def fail(self, connection: asyncpg.Connection) -> EmbeddedPostgres:
        """Kill PostgreSQL, and lose what had not been flushed when this was called; what starts from the remains.

        Only what happened before is in there for certain: of the moments after it, less than on a real disk.
        """
        flushed = _position(await connection.fetchval("select pg_current_wal_flush_lsn()::text"))
        timeline: int = await connection.fetchval("select timeline_id from pg_control_checkpoint()")
        await self._postgres.kill()
        log = self._after / "cluster" / "pg_wal"
        shutil.rmtree(log)
        _copy(self._home / "cluster" / "pg_wal", log)
        last = flushed // _SEGMENT
        cut = log / f"{timeline:08X}{last // _SEGMENTS_PER_LOG:08X}{last % _SEGMENTS_PER_LOG:08X}"
        for segment in log.iterdir():
            if segment.is_file() and segment.name > cut.name:
                segment.unlink()
        # At the very start of a segment it may not be there yet.
        with contextlib.suppress(FileNotFoundError), cut.open("r+b") as file:
            file.truncate(flushed % _SEGMENT)
            file.truncate(_SEGMENT)
        return EmbeddedPostgres(self._after)


def _position(text: str) -> int:
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def _copy(source: Path, target: Path) -> None:
    """With owners and modes; sockets and all."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
