"""Formatting of log records as one line: JSON, or readable on a terminal. Pure.

Text from a caller, a receiver or a database never reaches a line unescaped. The message of an exception is logged only
if it cannot contain such text: a ValueError, for example, quotes its input.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import time
import traceback
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from pythonjsonlogger.json import JsonFormatter

from relay.telemetry.colour import RED, YELLOW, painted

_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_OURS: Final = "relay"
# Longer than any field of ours. It keeps a line below 4,096 bytes (PIPE_BUF), which a pipe takes in one piece: the
# processes of a command share their stderr.
_MOST_CHARACTERS: Final = 256
_MOST_OF_A_TRACEBACK: Final = 2500
_MOST_FRAMES: Final = 30
_MOST_CAUSES: Final = 5
# Exceptions that Python raises for programming errors. Their messages contain types and names, never values.
_PROGRAMMING_ERRORS: Final = frozenset(
    (
        AssertionError, AttributeError, ImportError, IndexError, ModuleNotFoundError, NameError, NotImplementedError,
        RecursionError, RuntimeError, TypeError, UnboundLocalError, ZeroDivisionError,
    )
)  # fmt: skip
# The beginning of a library's message, before it quotes a value. Placeholders of the format string are kept.
_PLAIN: Final = re.compile(r"[\w ,.:-]{0,100}", re.ASCII)


class JsonLines(JsonFormatter):
    """Formats each record as a line with one JSON object, in ASCII.

    Args:
        command: the command that this process runs.
    """

    def __init__(self, command: str) -> None:
        super().__init__(json_serializer=partial(json.dumps, separators=(",", ":")))
        self._command = command

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Add the fields of a line, in this order."""
        log_data["timestamp"] = _rfc3339(record.created)
        log_data["level"] = record.levelname.lower()
        log_data["logger"] = record.name
        log_data["event"] = _event(record)
        log_data["command"] = self._command
        log_data["pid"] = record.process
        log_data.update(_fields(record))

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without a newline."""
        # The only control character that JSON does not escape.
        return str(super().format(record)).replace("\x7f", "\\u007f")

    def formatException(self, ei: Any) -> str:
        """Return nothing: the traceback is a field."""
        return ""


class ReadableLines(logging.Formatter):
    """Formats records as `12:00:01.250 warning listener_reconnects channel=relay_wake`, tracebacks indented below.

    Args:
        colours: True to colour the level of warnings and errors.
    """

    def __init__(self, *, colours: bool = False) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the lines of a traceback, without the last newline."""
        fields = _fields(record)
        below = fields.pop("traceback", "")
        stamp = f"{self.formatTime(record, '%H:%M:%S')}.{int(record.msecs):03d}"
        level = record.levelname.lower()
        if self._colours and record.levelno >= logging.WARNING:
            level = painted(level, YELLOW if record.levelno < logging.ERROR else RED)
        words = (stamp, level, _event(record), *(f"{name}={_word(fields[name])}" for name in fields))
        return "\n    ".join((" ".join(words), *map(_shown, below.splitlines())))


def _event(record: logging.LogRecord) -> str:
    return _shown(record.getMessage()) if _is_ours(record) else "library_message"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of a record."""
    fields = {name: _bounded(value) for name, value in vars(record).items() if name not in _OWN and name != "traceback"}
    if not _is_ours(record):
        plain = _PLAIN.match(str(record.msg))
        fields["said"] = plain[0].strip() if plain else ""
    if record.exc_info and record.exc_info[1] is not None:
        fields["traceback"] = traceback_of(record.exc_info[1])
    elif "traceback" in vars(record):
        fields["traceback"] = vars(record)["traceback"]
    return fields


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] == _OURS


def _bounded(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…"


def _word(value: Any) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _rfc3339(seconds: float) -> str:
    whole, fraction = divmod(int(seconds * 1_000_000), 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{fraction:06d}Z"


def traceback_of(error: BaseException) -> str:
    """Return the frames of an exception and its causes, the first cause first. Of a long text only the end is kept.

    The message of an exception is left out, unless it is a programming error or an exception of ours.
    """
    lines: list[str] = []
    for cause in reversed(list(_causes(error))):
        frames = traceback.extract_tb(cause.__traceback__)[-_MOST_FRAMES:]
        for frame in frames:
            lines.append(f'File "{frame.filename}", line {frame.lineno}, in {frame.name}')
            if frame.line:
                lines.append(f"  {frame.line}")
        lines.append(_named(cause))
    text = "\n".join(lines)
    return text if len(text) <= _MOST_OF_A_TRACEBACK else "…" + text[-_MOST_OF_A_TRACEBACK:]


def _causes(error: BaseException) -> Iterator[BaseException]:
    left: list[BaseException] = [error]
    for _ in range(_MOST_CAUSES):
        if not left:
            return
        cause = left.pop(0)
        yield cause
        if cause.__cause__ is not None:
            left.append(cause.__cause__)
        elif cause.__context__ is not None and not cause.__suppress_context__:
            left.append(cause.__context__)
        if isinstance(cause, BaseExceptionGroup):
            left += cause.exceptions


def _named(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if kind in _PROGRAMMING_ERRORS or kind.__module__.partition(".")[0] == _OURS:
        return f"{name}: {_bounded(str(error))}"
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(sqlstate, str):
        return f"{name} (SQLSTATE {sqlstate})"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{name} ({errno.errorcode.get(error.errno, error.errno)})"
    return name
