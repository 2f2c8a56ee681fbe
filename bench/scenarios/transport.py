"""What a delivery's HTTP half costs over kept and new connections."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from typing import Final

import msgspec

from bench.exchange import KEPT_PLAIN, KEPT_TLS, NEW_PLAIN, NEW_TLS, Turns, lines
from bench.scenarios.run import Bench, Outcome

_TURNS: Final = 5


class ExchangeFailed(Exception):
    """`bench.exchange` ended without figures."""


async def exchange(bench: Bench, outcome: Outcome) -> None:
    """CPU of a delivery by kind of connection, by turns, in a process of its own without a database."""
    turns = 1 if bench.quick else _TURNS
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.exchange", "--turns", str(turns), "--json"), stdout=PIPE, env=dict(os.environ)
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise ExchangeFailed(f"bench.exchange ended with code {process.returncode}")
    seen = msgspec.json.decode(said, type=dict[str, Turns])
    bench.row(outcome, "kept_plain_cpu", seen[KEPT_PLAIN].cpu)
    bench.row(outcome, "new_plain_ratio", seen[NEW_PLAIN].cpu / seen[KEPT_PLAIN].cpu)
    bench.row(outcome, "kept_tls_cpu", seen[KEPT_TLS].cpu)
    bench.row(outcome, "new_tls_ratio", seen[NEW_TLS].cpu / seen[KEPT_TLS].cpu)
    outcome.notes += lines(seen)
