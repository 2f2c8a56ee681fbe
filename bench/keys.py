"""python -m bench.keys: what keys that open nothing cost the API, and how long the first requests after a restart take.

Open loop: the same event is posted at the same rate with good keys and with each kind of bad ones, in turns, because a
machine is not the same machine a minute later.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import statistics
import string
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from typing import Final
from uuid import UUID

import click
import uvloop
from msgspec import Struct

from bench import machine
from bench.generator.plan import Result
from bench.generator.traffic import request
from bench.metrics import total
from bench.processes import Sampler
from bench.scenarios.run import TENANTS, Bench
from bench.service import Bed, Relay, file_limit_up, free_port
from relay.auth import Keyring, generate
from relay.auth.key_format import LENGTH, parse
from relay.store import Cell
from relay.values.encryption import Vault
from relay.values.uuid7 import Uuid7Clock

_KEYS: Final = 5_000
_LETTERS: Final = string.ascii_lowercase + "234567"
_GOOD: Final = "valid"
_COUNTED: Final = ("relay_keys_hashed_total", "relay_key_reads_total", "relay_keys_refused_total")


class Turn(Struct):
    """One turn of one kind: CPU of the API in microseconds a request, and what was counted."""

    cpu_us: float
    result: Result
    hashed: int
    reads: int
    refused: int


@click.command()
@click.option("--rate", type=click.FloatRange(min=1.0), default=10_000.0, help="Requests a second.")
@click.option("--seconds", type=click.FloatRange(min=1.0), default=8.0, help="Of each turn.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, help="Turns of each kind.")
@click.option("--tenants", type=click.IntRange(min=1), default=100, help="Who come at once after a restart.")
@click.option("--restarts", type=click.IntRange(min=1), default=3)
def main(rate: float, seconds: float, rounds: int, tenants: int, restarts: int) -> None:
    """What keys that open nothing cost, and first requests after a restart."""
    uvloop.run(_main(rate, seconds, rounds, tenants, restarts))


async def _main(rate: float, seconds: float, rounds: int, tenants: int, restarts: int) -> None:
    file_limit_up()
    folder = machine.folder_on_disk()
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        bed = await stack.enter_async_context(Bed(folder))
        bench = Bench(bed, None, folder=folder, seconds=seconds, quick=False)
        await _floods(bench, rate, rounds)
        await _restarts(bed, tenants, restarts)


async def _floods(bench: Bench, rate: float, rounds: int) -> None:
    turns: dict[str, list[Turn]] = defaultdict(list)
    async with bench.bed.relay(deliver=False) as relay:
        good = await relay.tenants(TENANTS)
        kinds = {_GOOD: good, **await _bad(bench.bed, relay, good[0])}
        click.echo(f"{rounds} turns of {bench.seconds:.0f} s for each kind, {rate:,.0f} requests a second")
        for _ in range(rounds):
            for kind, keys in kinds.items():
                turns[kind].append(await _turn(bench, relay, kind, keys, rate))
    valid = statistics.median(turn.cpu_us for turn in turns[_GOOD])
    click.echo(
        f"\n{'keys':<14}{'tried':>9}{'refused':>9}{'argon2':>8}{'reads':>7}{'CPU µs':>8}{'of valid':>10}{'p99 ms':>8}"
    )
    for kind, of_kind in turns.items():
        cpu_us = statistics.median(turn.cpu_us for turn in of_kind)
        tried, refused, hashed, reads = (
            sum(values)
            for values in zip(*((_tried(t.result), t.refused, t.hashed, t.reads) for t in of_kind), strict=True)
        )
        p99 = statistics.median(turn.result.latency.p99 for turn in of_kind)
        click.echo(
            f"{kind:<14}{tried:>9,}{refused:>9,}{hashed:>8,}{reads:>7,}{cpu_us:>8.1f}{cpu_us / valid:>10.2f}{p99:>8.1f}"
        )
        for void in sorted({turn.result.void for turn in of_kind if turn.result.void}):
            click.echo(f"{'':<14}latency says nothing: {void}")
        for wrong in sorted({wrong for turn in of_kind for wrong in turn.result.failures}):
            click.echo(f"{'':<14}answered: {wrong}")


async def _turn(bench: Bench, relay: Relay, kind: str, keys: list[str], rate: float) -> Turn:
    traffic = "small" if kind == _GOOD else "refused"
    before = await relay.scrape()
    async with Sampler({"api": relay.pids["api"]}) as sampler:
        result = await bench.generate(bench.plan(relay, keys, traffic=traffic, rate=rate))
    after = await relay.scrape()
    (usage,) = [usage for usage in sampler.between(result.began, result.ended) if usage.name == "api"]
    hashed, reads, refused = (round(total(after, name) - total(before, name)) for name in _COUNTED)
    return Turn(usage.cpu / result.per_second * 1e6, result, hashed, reads, refused)


def _tried(result: Result) -> int:
    """Requests sent, those of the warm-up included: the counters count them too."""
    return result.locust_requests


async def _bad(bed: Bed, relay: Relay, good: str) -> dict[str, list[str]]:
    """Bad keys by kind; the last two take the installation's HMAC key, as if it had leaked."""
    keyring = await _keyring(bed, relay)
    draw, ids = random.Random(1), Uuid7Clock()
    parts = parse(good.encode(), keyring.hmac_key)
    if parts is None:
        raise RuntimeError("the keyring is not the one of this database")

    def letters(length: int) -> str:
        return "".join(draw.choices(_LETTERS, k=length))

    def minted(key_id: UUID | None = None) -> str:
        return generate(keyring.cell_id, key_id or ids.new(), keyring.hmac_key)[0]

    return {
        "random": [letters(draw.randrange(1, 200)) for _ in range(_KEYS)],
        "malformed": [good[: draw.randrange(1, LENGTH)] for _ in range(_KEYS)],
        "invented": [f"rly_live_{keyring.cell_id}{letters(26)}_{letters(60)}" for _ in range(_KEYS)],
        "unknown": [minted() for _ in range(_KEYS)],
        "wrong secret": [minted(parts.key_id) for _ in range(_KEYS)],
    }


async def _keyring(bed: Bed, relay: Relay) -> Keyring:
    secret = bed.environment("", 0)["RELAY_SECRET_KEY"]
    async with Cell(
        relay.url or "", direct_url=None, schema="relay", application="bench", connections=9, lifetime_s=540.0
    ) as cell:
        return await Keyring.open(cell, Vault([secret]))


async def _restarts(bed: Bed, tenants: int, restarts: int) -> None:
    port = free_port()
    async with bed.database() as url:
        env = bed.environment(url, port)
        async with AsyncExitStack() as stack:
            await bed.start(stack, "api", "serve", env=env)
            keys = await Relay("127.0.0.1", port).tenants(tenants)
        click.echo(f"\nfirst requests of {tenants} tenants at once after a restart, ms")
        each_ms = []
        for _ in range(restarts):
            async with AsyncExitStack() as stack:
                await bed.start(stack, "api", "serve", env=env)
                relay = Relay("127.0.0.1", port)
                first = sorted(await _at_once(relay, keys))
                second = sorted(await _at_once(relay, keys))
                hashed = total(await relay.scrape(), "relay_keys_hashed_total")
            each_ms.append(first[-1] / tenants)
            click.echo(f"  first:  {_spread(first)}, {hashed:.0f} runs of Argon2id\n  second: {_spread(second)}")
        per_tenant_ms = statistics.median(each_ms)
        click.echo(
            f"{per_tenant_ms:.1f} ms a tenant until the last of them: "
            f"for 1,000 at once, p50 {500 * per_tenant_ms / 1000:.1f} s, "
            f"p99 {990 * per_tenant_ms / 1000:.1f} s"
        )


async def _at_once(relay: Relay, keys: list[str]) -> list[float]:
    """Milliseconds until each tenant's answer, all asked at the same time."""
    streams = [await asyncio.open_connection(relay.host, relay.port) for _ in keys]
    body = b'{"type":"order.created","payload":1}'
    began = time.monotonic()

    async def ask(key: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
        writer.write(request("POST", "/api/events", f"{relay.host}:{relay.port}", key, body))
        answer = await reader.readuntil(b"}")
        took_ms = (time.monotonic() - began) * 1000
        writer.close()
        if b" 201 " not in answer.partition(b"\r\n")[0]:
            raise RuntimeError(answer.decode("latin-1"))
        return took_ms

    return await asyncio.gather(*(ask(key, *stream) for key, stream in zip(keys, streams, strict=True)))


def _spread(sorted_ms: list[float]) -> str:
    def at(share: float) -> float:
        return sorted_ms[min(len(sorted_ms) - 1, int(share * len(sorted_ms)))]

    return f"p50 {at(0.5):.0f}, p99 {at(0.99):.0f}, last {sorted_ms[-1]:.0f}"


if __name__ == "__main__":
    main()
