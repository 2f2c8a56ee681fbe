"""Structured logs on stderr: facts with fields, one JSON object a line; readable lines on a terminal."""

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
    """Send this process's log to stderr, tracebacks of what nobody has caught included.

    Args:
        level: the least level that is written: debug, info, warning or error. Of libraries, no less than warnings.
        command: what this process runs, such as `serve`.
    """
    on_terminal = os.isatty(_STDERR)
    outlet = NonBlockingHandler(_STDERR, sys.stderr.encoding if on_terminal else "ascii")
    colours = is_wanted(_STDERR, os.environ)
    outlet.setFormatter(ReadableLines(colours=colours) if on_terminal else JsonLines(command))
    root = logging.getLogger()
    root.handlers[:] = [outlet]
    # logging's own end knows nothing of it once Granian has configured loggers of its own.
    atexit.register(outlet.flush)
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))
    _log.setLevel(level.upper())
    sys.excepthook = _uncaught
    sys.unraisablehook = lambda it: _uncaught(it.exc_type, it.exc_value, it.exc_traceback)
    threading.excepthook = lambda it: _uncaught(it.exc_type, it.exc_value, it.exc_traceback)


def flush() -> None:
    """Wait until what was said is written, but not long; for a process that leaves without Python's own end."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> Any:
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    _log.critical("uncaught", exc_info=(kind, error or kind(), trace))
