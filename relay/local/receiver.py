"""The demo receiver of `relay up`: it receives and prints the demo organization's webhooks."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import hmac
import json
import logging
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from types import TracebackType
from typing import Any, Final, Self

from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server

from relay.values.signature import PREFIX, sign_v1

_log: Final = logging.getLogger("relay.local")

_HOST: Final = "127.0.0.1"
_BODY_BYTES: Final = 1 << 20
# How far a signature's time may differ from ours (Standard Webhooks, "Verifying webhook authenticity").
_TOLERANCE_S: Final = 300
_STOP_TIMEOUT_S: Final = 1.0

Message = MutableMapping[str, Any]


class BadDelivery(Exception):
    """A delivery that relay did not send. The argument is the reason."""


def verify(headers: Mapping[bytes, bytes], body: bytes, *, secret: bytes, now_s: float) -> None:
    """Verify a delivery's signature as the Standard Webhooks specification requires.

    Raises:
        BadDelivery: it is not signed with `secret`, or is too old.
    """
    stamp = headers.get(b"webhook-timestamp", b"")
    if not stamp.isdigit() or len(stamp) > 15 or abs(now_s - int(stamp)) > _TOLERANCE_S:
        raise BadDelivery("bad_timestamp")
    try:
        ours = sign_v1(secret, headers.get(b"webhook-id", b"").decode("ascii"), int(stamp), body).encode()
    except UnicodeDecodeError:
        raise BadDelivery("bad_signature") from None
    theirs = headers.get(b"webhook-signature", b"").split(b" ")
    if not any(hmac.compare_digest(ours, signature) for signature in theirs):
        raise BadDelivery("bad_signature")


def describe(body: bytes, *, now_s: float) -> str:
    """Return the line for a delivery: the time since its event, the event's type and id.

    Raises:
        BadDelivery: the body is not an event.
    """
    try:
        # The payload may contain longer numbers than Python converts to int.
        event = json.loads(body, parse_int=str, parse_float=str)
        sent = datetime.datetime.fromisoformat(event["timestamp"])
        passed_ms = (now_s - sent.timestamp()) * 1000
        return f"delivered in {max(passed_ms, 0.0):.0f} ms  {shown(event['type'])}  {shown(event['event_id'])}"
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadDelivery("bad_body") from error


def shown(text: str) -> str:
    """Escape `text` for a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[:255])


class Lines:
    """Print at most `per_second` lines a second, and then how many more there were.

    Args:
        write: called with each line.
        per_second: the limit.
    """

    def __init__(self, write: Callable[[str], None], per_second: int = 20) -> None:
        self._write = write
        self._per_second = per_second
        self._left = per_second
        self._more = 0
        self._second: asyncio.TimerHandle | None = None

    @property
    def full(self) -> bool:
        """Return whether the next line would only be counted, so it need not be formatted."""
        return self._left == 0

    def say(self, line: str) -> None:
        """Print a line, or count it."""
        if self._second is None:
            self._second = asyncio.get_running_loop().call_later(1.0, self.flush)
        if self.full:
            self._more += 1
        else:
            self._left -= 1
            self._write(line)

    def flush(self) -> None:
        """Print how many lines were only counted, and begin a new second."""
        if self._second is not None:
            self._second.cancel()
            self._second = None
        if self._more:
            self._write(f"… and {self._more} more")
        self._more = 0
        self._left = self._per_second


def _print(line: str) -> None:
    # The reader of stdout may have left. Deliveries go on.
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stdout, flush=True)


class DemoReceiver:
    """An ASGI callable and its server, on a free port. Entering starts it.

    Args:
        write: called with the line of each delivery.
        clock: seconds since 1970.
    """

    def __init__(self, write: Callable[[str], None] = _print, clock: Callable[[], float] = time.time) -> None:
        #: The endpoint's `whsec_` secret. Until it is known, deliveries get 503 and are retried.
        self.secret = ""
        self._lines = Lines(write)
        self._complaints = Lines(lambda line: _log.warning("demo_delivery_refused", extra={"reason": line}))
        self._clock = clock
        self._port = 0
        self._server: Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Return the URL for webhooks."""
        return f"http://{_HOST}:{self._port}/"

    async def __aenter__(self) -> Self:
        self._port = _free_port()
        self._server = Server(
            self,
            address=_HOST,
            port=self._port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            websockets=False,
            log_enabled=False,
            backpressure=1024,
        )
        self._serving = asyncio.create_task(self._server.serve(), name="demo receiver")
        while not self._serving.done():
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(_HOST, self._port)
                writer.close()
                return self
            await asyncio.sleep(0.005)
        await self._serving
        raise RuntimeError("the demo receiver exited during startup")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None and self._serving is not None:
            self._server.stop()  # type: ignore[no-untyped-call]
            # It would also wait for idle connections.
            _, slow = await asyncio.wait({self._serving}, timeout=_STOP_TIMEOUT_S)
            for task in slow:
                task.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
        self._lines.flush()
        self._complaints.flush()

    async def __call__(
        self,
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Receive one delivery."""
        body = bytearray()
        more = True
        while more and len(body) <= _BODY_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        status = self._take(dict(scope["headers"]), bytes(body))
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def _take(self, headers: Mapping[bytes, bytes], body: bytes) -> int:
        """Verify and print one delivery, and return the response status."""
        if not self.secret:
            return 503
        if len(body) > _BODY_BYTES:
            return 413
        now_s = self._clock()
        try:
            verify(headers, body, secret=base64.b64decode(self.secret.removeprefix(PREFIX)), now_s=now_s)
            self._lines.say("" if self._lines.full else describe(body, now_s=now_s))
        except BadDelivery as bad:
            self._complaints.say(str(bad))
            return 400 if bad.args == ("bad_body",) else 401
        return 200


def _free_port() -> int:
    """Return a free port. Granian requires a number."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port
