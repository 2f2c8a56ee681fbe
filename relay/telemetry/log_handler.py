"""A non-blocking log handler: a thread writes the lines, and repeated events are rate-limited."""

from __future__ import annotations

import logging
import os
import queue
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

#: The limit for one event. Lines over it are counted instead of written.
LINES_PER_SECOND: Final = 10
#: Events without a limit, because the operator has chosen the share of them that is logged.
_UNLIMITED: Final = frozenset(("request_sampled",))
_WINDOW_S: Final = 1.0
# Our own events are few, but libraries may compose theirs at run time.
_MOST_EVENTS: Final = 256
_FLUSH_S: Final = 3.0
#: The limit on bytes that wait to be written. Lines over it are dropped and counted.
WAITING_BYTES: Final = 1024 * 1024


class _Window:
    __slots__ = ("began", "left_out", "level", "written")

    def __init__(self, began: float, level: int) -> None:
        self.began = began
        self.level = level
        self.written = 0
        self.left_out = 0


class RepeatLimiter:
    """Admits `LINES_PER_SECOND` lines of each event and counts the rest.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Not the handler's own lock: a thread that flushes holds that one while it waits for the writer thread.
        self._lock = threading.Lock()
        self._windows: dict[str, _Window] = {}
        #: True if lines were left out that have not been reported yet.
        self.unreported = False

    def admits(self, event: str, level: int) -> bool:
        """Return whether to write this line, and count it if not."""
        if event in _UNLIMITED:
            return True
        with self._lock:
            return self._admits(event, level)

    def _admits(self, event: str, level: int) -> bool:
        now = self._clock()
        if event not in self._windows and len(self._windows) >= _MOST_EVENTS:
            event = "others"
        window = self._windows.get(event)
        if window is None or (now - window.began >= _WINDOW_S and not window.left_out):
            window = self._windows[event] = _Window(now, level)
        if window.written < LINES_PER_SECOND:
            window.written += 1
            return True
        window.left_out += 1
        self.unreported = True
        return False

    def over(self, *, all_: bool = False) -> list[tuple[str, int, int]]:
        """Return (event, level, lines) for each event of which lines were left out in a window that has ended.

        Args:
            all_: include windows that have not ended.
        """
        left_out = []
        with self._lock:
            now = self._clock()
            self.unreported = False
            for event, window in list(self._windows.items()):
                if now - window.began < _WINDOW_S and not all_:
                    self.unreported = self.unreported or bool(window.left_out)
                    continue
                if window.left_out:
                    left_out.append((event, window.level, window.left_out))
                del self._windows[event]
        return left_out


class NonBlockingHandler(logging.Handler):
    """Writes lines from a thread of its own. A full pipe blocks only that thread, and memory is bounded.

    Args:
        fd: the file descriptor to write to.
        encoding: of the lines. Characters that it lacks are escaped.
        waiting_bytes: the limit on bytes that wait to be written.
    """

    def __init__(self, fd: int, encoding: str = "utf-8", waiting_bytes: int = WAITING_BYTES) -> None:
        super().__init__()
        self._fd = fd
        self._encoding = encoding
        self._waiting_bytes = waiting_bytes
        # Each counter is changed either by threads that log or by the writer thread, so neither waits for the other.
        self._put_bytes = 0
        self._written_bytes = 0
        self._not_put = 0
        self._not_written = 0
        self._reported = 0
        self._reported_at = -_WINDOW_S
        self._repeats = RepeatLimiter()
        # A line; an event to set after all lines before it; or None, to check for lines that were left out.
        self._lines: queue.SimpleQueue[bytes | threading.Event | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record, or count it as left out or dropped."""
        unreported = self._repeats.unreported
        if not self._repeats.admits(str(record.msg), record.levelno):
            if not unreported:
                self._lines.put(None)
            return
        try:
            line = self._line(record)
        except Exception:
            # logging would write a traceback that includes values, and would wait for the pipe.
            self._not_put += 1
            return
        if self._put_bytes - self._written_bytes + len(line) > self._waiting_bytes:
            self._not_put += 1
            return
        self._put_bytes += len(line)
        self._lines.put(line)

    def flush(self) -> None:
        """Wait until all lines so far are written, for at most 3 s."""
        done = threading.Event()
        self._lines.put(done)
        done.wait(_FLUSH_S)

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode(self._encoding, "backslashreplace") + b"\n"

    def _run(self) -> None:
        while True:
            try:
                item = self._lines.get(timeout=_WINDOW_S if self._has_unreported() else None)
            except queue.Empty:
                item = None
            if isinstance(item, bytes):
                self._write(item)
                self._written_bytes += len(item)
            self._report(all_=isinstance(item, threading.Event))
            if isinstance(item, threading.Event):
                item.set()

    def _has_unreported(self) -> bool:
        return self._repeats.unreported or self._not_put + self._not_written != self._reported

    def _report(self, *, all_: bool) -> None:
        """Log how many lines were left out or dropped, at most once a second."""
        if not self._has_unreported():
            return
        with suppress(Exception):
            for event, level, lines in self._repeats.over(all_=all_):
                self._log("lines_left_out", level, of=event, lines=lines)
            now = time.monotonic()
            dropped = self._not_put + self._not_written
            if dropped != self._reported and (all_ or now - self._reported_at >= _WINDOW_S):
                self._log("lines_dropped", logging.WARNING, lines=dropped - self._reported)
                self._reported = dropped
                self._reported_at = now

    def _log(self, event: str, level: int, **fields: object) -> None:
        record = {"name": "relay.log", "msg": event, "levelno": level, "levelname": logging.getLevelName(level)}
        self._write(self._line(logging.makeLogRecord({**record, **fields})))

    def _write(self, line: bytes) -> None:
        left = memoryview(line)
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:
                # Another process that shares the pipe has made it non-blocking.
                select.select((), (self._fd,), (), _WINDOW_S)
            except OSError:
                # The reader is gone, or the disk is full.
                self._not_written += 1
                return
