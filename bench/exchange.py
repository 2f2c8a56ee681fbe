"""python -m bench.exchange: CPU time of one delivery's HTTP half, by kind of connection. No database.

A receiver in another process answers; what is counted is user and system time of the process that signs and posts.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import multiprocessing
import os
import ssl
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import click
import msgspec
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    from relay.delivery.transport.request import Target
    from relay.delivery.transport.sender import Sender

_AT_ONCE: Final = 16
_PAYLOAD: Final = b'{"order":"0193","lines":[' + b",".join([b'{"sku":"a-1","count":2}'] * 40) + b"]}"


class Kind(NamedTuple):
    """One kind of connection: its name, the receiver's URL, and deliveries per run."""

    name: str
    tls: bool
    host: str
    kept: bool
    deliveries: int


#: What connections of a kind are compared with.
KEPT_PLAIN: Final = "kept plain"
KEPT_TLS: Final = "kept TLS"
NEW_PLAIN: Final = "new plain"
NEW_TLS: Final = "new TLS"
_KINDS: Final = (
    Kind(KEPT_PLAIN, False, "127.0.0.1", True, 6_000),
    Kind(KEPT_TLS, True, "127.0.0.1", True, 4_000),
    Kind(NEW_PLAIN, False, "127.0.0.1", False, 2_000),
    Kind("new plain, by name", False, "localhost", False, 2_000),
    Kind(NEW_TLS, True, "127.0.0.1", False, 600),
)


class Turns(msgspec.Struct):
    """What the turns of one kind gave: CPU microseconds of a delivery, and deliveries a second."""

    cpu_us: list[float] = msgspec.field(default_factory=list)
    per_second: list[float] = msgspec.field(default_factory=list)

    @property
    def cpu(self) -> float:
        """The median."""
        return statistics.median(self.cpu_us)


class _Receiver(asyncio.Protocol):
    """Responds with 200 to each request. For a path that begins with /once it closes the connection."""

    def __init__(self) -> None:
        self._came = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not made from asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._came += data
        head, blank, body = self._came.partition(b"\r\n\r\n")
        if not blank:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._came = b""
        if head.startswith(b"POST /once"):
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            self._transport.close()
        else:
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def _receive(pipe: Connection, pem: str) -> None:
    async def listen() -> None:
        loop = asyncio.get_running_loop()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pem)
        plain = await loop.create_server(_Receiver, "127.0.0.1", 0, backlog=1024)
        secure = await loop.create_server(_Receiver, "127.0.0.1", 0, backlog=1024, ssl=context)
        pipe.send([server.sockets[0].getsockname()[1] for server in (plain, secure)])
        await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(listen())


def _certificate(folder: Path) -> Path:
    """Create a self-signed certificate for this machine, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "receiver.pem"
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@contextlib.contextmanager
def _receiver() -> Iterator[list[int]]:
    with tempfile.TemporaryDirectory() as folder:
        pem = _certificate(Path(folder))
        # Read when the HTTP client is imported, which is why that is left to `_measure`.
        os.environ["SSL_CERT_FILE"] = str(pem)
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_receive, args=(theirs, str(pem)), daemon=True)
        process.start()
        try:
            yield ours.recv()
        finally:
            process.terminate()
            process.join()


async def _deliver(sender: Sender, target: Target, count: int) -> None:
    from relay.delivery.transport.sender import Post
    from relay.values.uuid7 import Uuid7Clock

    clock = Uuid7Clock()
    left = iter(range(count))

    async def one_after_another() -> None:
        for _ in left:
            answer = await sender.send(Post(target, clock.new(), "order.created", _PAYLOAD, 1))
            if answer.error_class is not None:
                raise click.ClickException(f"a delivery failed: {answer.error_class}")

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(one_after_another())


async def _measure(ports: list[int], turns: int) -> dict[str, Turns]:
    from relay.delivery.transport.request import SigningKeys, Target
    from relay.delivery.transport.sender import Sender
    from relay.delivery.transport.ssrf_guard import SsrfGuard

    guard = SsrfGuard([ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")])
    seen = {kind.name: Turns() for kind in _KINDS}
    async with Sender(guard, now=lambda: datetime.datetime.now(datetime.UTC)) as sender:
        for turn in range(turns + 1):
            for kind in _KINDS:
                scheme = "https" if kind.tls else "http"
                url = f"{scheme}://{kind.host}:{ports[kind.tls]}/{'kept' if kind.kept else 'once'}"
                target = Target(url, SigningKeys(b"s" * 32), {}, 10.0)
                count = kind.deliveries if turn else _AT_ONCE * 4
                begun, before_s = time.perf_counter(), time.process_time()
                await _deliver(sender, target, count)
                after_s, ended = time.process_time(), time.perf_counter()
                # The first turn only warms up.
                if turn:
                    seen[kind.name].cpu_us.append((after_s - before_s) / count * 1e6)
                    seen[kind.name].per_second.append(count / (ended - begun))
    return seen


def lines(seen: Mapping[str, Turns]) -> Iterator[str]:
    """Each kind: median and range, how many times a kept connection of its kind, and the rate."""
    for kind in _KINDS:
        turns = seen[kind.name]
        base = seen[KEPT_TLS if kind.tls else KEPT_PLAIN].cpu
        yield (
            f"{kind.name:20} {turns.cpu:7.1f} us ({min(turns.cpu_us):.1f} to {max(turns.cpu_us):.1f})"
            f"  x{turns.cpu / base:5.2f}  {statistics.median(turns.per_second):8,.0f}/s"
        )


@click.command()
@click.option("--turns", type=click.IntRange(min=1), default=5, help="Of each kind, by turns (5).")
@click.option("--json", "as_json", is_flag=True, help="Print every turn as JSON.")
def main(turns: int, as_json: bool) -> None:
    """CPU time of a delivery over kept and new connections, plain and TLS: medians and ranges of several turns."""
    with _receiver() as ports:
        seen = uvloop.run(_measure(ports, turns))
    click.echo(msgspec.json.encode(seen).decode() if as_json else "\n".join(lines(seen)))


if __name__ == "__main__":
    main()
