"""The way of log lines to a file descriptor: whoever logs never waits, and nothing is said too often."""

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

#: Lines of one event that are written in a second; the others are counted.
LINES_PER_SECOND: Final = 10
#: Events that are written however often they come: an operator has asked for a share of them.
_UNLIMITED: Final = frozenset(("request_sampled",))
_WINDOW_S: Final = 1.0
# Events are words in our code, but libraries make theirs as they go.
_MOST_EVENTS: Final = 256
_FLUSH_S: Final = 3.0
#: What waits for a reader at most; past that, lines are dropped and counted.
WAITING_BYTES: Final = 1024 * 1024


class _Window:
    __slots__ = ("began", "left_out", "level", "said")

    def __init__(self, began: float, level: int) -> None:
        self.began = began
        self.level = level
        self.said = 0
        self.left_out = 0


class RepeatLimiter:
    """Lets `LINES_PER_SECOND` lines of each event through and counts the rest.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Not the handler's own, which whoever flushes holds while it waits for the thread.
        self._lock = threading.Lock()
        self._windows: dict[str, _Window] = {}
        #: Whether lines are left out that nobody has been told of.
        self.untold = False

    def admits(self, event: str, level: int) -> bool:
        """Whether this line is written."""
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
        if window.said < LINES_PER_SECOND:
            window.said += 1
            return True
        window.left_out += 1
        self.untold = True
        return False

    def over(self, *, all_: bool = False) -> list[tuple[str, int, int]]:
        """Events of which lines were left out in a second that is over, with their level and how many lines.

        Args:
            all_: also of a second that is not over.
        """
        told = []
        with self._lock:
            now = self._clock()
            self.untold = False
            for event, window in list(self._windows.items()):
                if now - window.began < _WINDOW_S and not all_:
                    self.untold = self.untold or bool(window.left_out)
                    continue
                if window.left_out:
                    told.append((event, window.level, window.left_out))
                del self._windows[event]
        return told


class NonBlockingHandler(logging.Handler):
    """Writes lines from a thread of its own: a full pipe holds up nobody but that, and memory is bounded.

    Args:
        fd: where to.
        encoding: of the lines; what it lacks is escaped.
        waiting_bytes: what may wait.
    """

    def __init__(self, fd: int, encoding: str = "utf-8", waiting_bytes: int = WAITING_BYTES) -> None:
        super().__init__()
        self._fd = fd
        self._encoding = encoding
        self._waiting_bytes = waiting_bytes
        # Each is written by one side alone, so that neither waits for the other: who logs, and the thread.
        self._put_bytes = 0
        self._written_bytes = 0
        self._not_put = 0
        self._not_written = 0
        self._told = 0
        self._told_at = -_WINDOW_S
        self._repeats = RepeatLimiter()
        # A line; an event to set once all lines before it are written; or None, to look around.
        self._lines: queue.SimpleQueue[bytes | threading.Event | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put the record in line, or count it."""
        untold = self._repeats.untold
        if not self._repeats.admits(str(record.msg), record.levelno):
            if not untold:
                self._lines.put(None)
            return
        try:
            line = self._line(record)
        except Exception:
            # What logging does with it is to write a traceback, values and all, and wait for the pipe.
            self._not_put += 1
            return
        if self._put_bytes - self._written_bytes + len(line) > self._waiting_bytes:
            self._not_put += 1
            return
        self._put_bytes += len(line)
        self._lines.put(line)

    def flush(self) -> None:
        """Wait until all that was said is written, but not long."""
        done = threading.Event()
        self._lines.put(done)
        done.wait(_FLUSH_S)

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode(self._encoding, "backslashreplace") + b"\n"

    def _run(self) -> None:
        while True:
            try:
                item = self._lines.get(timeout=_WINDOW_S if self._owes_word() else None)
            except queue.Empty:
                item = None
            if isinstance(item, bytes):
                self._write(item)
                self._written_bytes += len(item)
            self._tell(all_=isinstance(item, threading.Event))
            if isinstance(item, threading.Event):
                item.set()

    def _owes_word(self) -> bool:
        return self._repeats.untold or self._not_put + self._not_written != self._told

    def _tell(self, *, all_: bool) -> None:
        """Say how many lines were left out or dropped, seldom."""
        if not self._owes_word():
            return
        with suppress(Exception):
            for event, level, lines in self._repeats.over(all_=all_):
                self._say("lines_left_out", level, of=event, lines=lines)
            now = time.monotonic()
            dropped = self._not_put + self._not_written
            if dropped != self._told and (all_ or now - self._told_at >= _WINDOW_S):
                self._say("lines_dropped", logging.WARNING, lines=dropped - self._told)
                self._told = dropped
                self._told_at = now

    def _say(self, event: str, level: int, **facts: object) -> None:
        said = {"name": "relay.log", "msg": event, "levelno": level, "levelname": logging.getLevelName(level), **facts}
        self._write(self._line(logging.makeLogRecord(said)))

    def _write(self, line: bytes) -> None:
        left = memoryview(line)
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:
                # Somebody who shares the pipe has made it so.
                select.select((), (self._fd,), (), _WINDOW_S)
            except OSError:
                # Nobody reads any more, or the disk is full.
                self._not_written += 1
                return
