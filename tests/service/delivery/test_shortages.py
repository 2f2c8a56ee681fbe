"""Local shortages are not the receiver's fault: no attempt is counted, and everything is delivered afterwards."""

from __future__ import annotations

import datetime
import errno
import ipaddress
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest

from relay.delivery.transport.request import SigningKeys, Target
from relay.delivery.transport.resolver import Resolver
from relay.delivery.transport.sender import AttemptResponse, Post, Sender
from relay.delivery.transport.shortage import Shortage, most_connections
from relay.delivery.transport.ssrf_guard import SsrfGuard
from relay.delivery.transport.system_lookup import Address
from relay.store import Cell
from relay.values.uuid7 import Uuid7Clock
from tests.conftest import Commands
from tests.support.delivery_harness import Books, until
from tests.support.receiver import Receiver

CLOCK = Uuid7Clock()
BOTH: list[Address] = [
    (socket.AF_INET6, socket.IPPROTO_TCP, "::1"),
    (socket.AF_INET, socket.IPPROTO_TCP, "127.0.0.1"),
]


class Poor(SsrfGuard):
    """Makes no sockets, for this reason."""

    def __init__(self, error: BaseException) -> None:
        super().__init__((ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")))
        self.error: BaseException | None = error

    def __call__(self, addr_info: tuple[Any, Any, Any, Any, Any]) -> socket.socket:
        if self.error is not None:
            raise self.error
        return super().__call__(addr_info)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as entered:
        yield entered


def sender_with(guard: SsrfGuard) -> Sender:
    now = datetime.datetime.now(datetime.UTC)
    return Sender(guard, now=lambda: now, resolver=lambda: Resolver(lambda _: list(BOTH)))


async def attempt(sender: Sender, url: str) -> AttemptResponse:
    return await sender.send(Post(Target(url, SigningKeys(b"s" * 32), {}, 5.0), CLOCK.new(), "order.created", b"1", 1))


SHORT = [OSError(code, os.strerror(code)) for code in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)]
SHORT.append(OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL)))


@pytest.mark.parametrize(
    ("host", "error"),
    [*((host, error) for host in ("127.0.0.1", "name.example") for error in SHORT), ("127.0.0.1", MemoryError())],
)
async def test_what_fails_for_want_of_something_of_ours_is_no_attempt(
    receiver: Receiver, host: str, error: BaseException
) -> None:
    guard = Poor(error)
    async with sender_with(guard) as sender:
        with pytest.raises(Shortage) as short:
            await attempt(sender, f"http://{host}:{receiver.port}/")
        assert short.value.is_general
        assert short.value.pause_s > 0
        guard.error = None
        assert (await attempt(sender, f"http://127.0.0.1:{receiver.port}/")).error_class is None


#: Runs in a network of its own, of which only the loopback interface is there.
ALONE = """
import asyncio, fcntl, socket, struct, sys
from pathlib import Path
from tests.service.delivery.test_shortages import Shortage, SsrfGuard, attempt, ipaddress, sender_with

UP = struct.pack("16sh", b"lo", 1)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as configured:
    fcntl.ioctl(configured, 0x8914, UP)

async def main():
    guard = SsrfGuard((ipaddress.ip_network("::1/128"),))
    async with sender_with(guard) as sender:
        if sys.argv[1] == "no ipv6":
            Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
            response = await attempt(sender, "http://[::1]:9/")
            print(response.error_class, response.body.decode())
            return
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40001")
        server = socket.create_server(("::1", 9), family=socket.AF_INET6)
        used = [socket.create_connection(("::1", 9)) for _ in range(2)]
        try:
            await attempt(sender, "http://[::1]:9/")
        except Shortage as shortage:
            print("lacking", shortage.lacking)

asyncio.run(main())
"""


def can_unshare() -> bool:
    unshare = shutil.which("unshare")
    return unshare is not None and subprocess.run([unshare, "-n", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="may not make a network namespace")
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no ipv6", "connect The machine that delivers has no IPv6 address that could reach this one."),
        ("no ports", "lacking ports"),
    ],
)
def test_an_ipv6_address_that_cannot_be_reached_from_here_is_told_from_a_lack_of_ports(what: str, said: str) -> None:
    command = ["unshare", "-n", sys.executable, "-c", ALONE, what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == said, done.stderr


async def test_kept_connections_are_ended_where_descriptors_are_short(receiver: Receiver) -> None:
    guard = Poor(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    guard.error = None
    async with sender_with(guard) as sender:
        assert (await attempt(sender, receiver.url)).error_class is None
        assert sender._connection_pool.idle == 1
        guard.error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        async with Receiver() as other:
            with pytest.raises(Shortage):
                await attempt(sender, other.url)
        assert sender._connection_pool.idle == 0


async def test_at_the_limit_of_connections_a_delivery_waits_for_a_moment_and_is_not_counted(receiver: Receiver) -> None:
    async with sender_with(SsrfGuard((ipaddress.ip_network("127.0.0.0/8"),))) as sender:
        sender._connection_pool._max_connections = 0
        with pytest.raises(Shortage):
            await attempt(sender, receiver.url)


def test_connections_are_bounded_by_the_limit_of_descriptors_as_it_stands() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        for limit, most in ((256, 128), (1024, 768)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
            assert most_connections() == most
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and sets the limit of another process")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.slow
async def test_a_process_without_descriptors_delivers_all_in_the_end_and_counts_no_attempt(
    cell: Cell, database: str, commands: Commands, host: str
) -> None:
    connection = await asyncpg.connect(database)
    books = Books(cell, connection)
    child = await commands.deliver(database, RELAY_RETRY_SCHEDULE="3600")
    pid = child.pid
    assert pid is not None
    async with AsyncExitStack() as stack:
        receivers = [await stack.enter_async_context(Receiver()) for _ in range(40)]
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        # For a few connections of all kinds: to PostgreSQL some are made still, and look-ups need theirs too.
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + 8, hard))
        for receiver in receivers:
            organization_id, _ = await books.endpoint(f"http://{host}:{receiver.port}/")
            await books.accept(organization_id)
        await until(books.is_empty, 60.0)
    rows = await books.attempts()
    assert [(row["number"], row["error_class"]) for row in rows] == [(1, None)] * 40
    assert {row["status"] for row in await books.deliveries()} == {"delivered"}
    await connection.close()
