"""Structured logs on stderr: facts with fields, one JSON object a line; readable lines on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any, Final

from pythonjsonlogger.json import JsonFormatter

_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _Readable(logging.Formatter):
    """`12:00:01 warning listener_reconnects channel=relay_wake`, nothing unescaped."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in vars(record).items() if name not in _OWN}
        text = " ".join(
            (
                self.formatTime(record, "%H:%M:%S"),
                record.levelname.lower(),
                record.getMessage(),
                *(f"{name}={_escaped(value)}" for name, value in fields.items()),
            )
        )
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def _escaped(value: Any) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)


def set_up(level: str) -> None:
    """Send this process's log to stderr.

    Args:
        level: the least level that is written: debug, info, warning or error.
    """
    handler = logging.StreamHandler(sys.stderr)
    if sys.stderr.isatty():
        handler.setFormatter(_Readable())
    else:
        handler.setFormatter(
            JsonFormatter(
                "%(levelname)s %(name)s %(message)s",
                rename_fields={"levelname": "level", "name": "logger", "message": "event"},
                timestamp="at",
            )
        )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
