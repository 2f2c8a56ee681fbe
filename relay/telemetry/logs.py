"""Structured logs on stderr: one JSON object per line, or readable lines on a terminal."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from types import TracebackType
from typing import Any, Final

from relay.telemetry.colour import is_wanted
from relay.telemetry.log_format import JsonLines, ReadableLines
from relay.telemetry.log_handler import NonBlockingHandler

_log: Final = logging.getLogger("relay")

_STDERR: Final = 2


def set_up(level: str, command: str) -> None:
    """Send this process's log to stderr, including the tracebacks of uncaught exceptions.

    Args:
        level: the lowest level that is written: debug, info, warning or error. For libraries it is at least warning.
        command: the command that this process runs, such as `serve`.
    """
    on_terminal = os.isatty(_STDERR)
    handler = NonBlockingHandler(_STDERR, sys.stderr.encoding if on_terminal else "ascii")
    colours = is_wanted(_STDERR, os.environ)
    handler.setFormatter(ReadableLines(colours=colours) if on_terminal else JsonLines(command))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # logging.shutdown no longer knows this handler once Granian has configured its own loggers.
    atexit.register(handler.flush)
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))
    _log.setLevel(level.upper())
    sys.excepthook = _uncaught
    sys.unraisablehook = lambda it: _uncaught(it.exc_type, it.exc_value, it.exc_traceback)
    threading.excepthook = lambda it: _uncaught(it.exc_type, it.exc_value, it.exc_traceback)


def flush() -> None:
    """Wait until the log is written, for at most 3 s: for a process that exits without Python's finalization."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> Any:
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    _log.critical("uncaught", exc_info=(kind, error or kind(), trace))
