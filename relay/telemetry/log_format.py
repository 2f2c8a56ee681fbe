"""A log record as one line: JSON, or readable on a terminal. Pure.

Nothing that a caller, a receiver or a database wrote reaches a line raw, and the text of an exception only where it can
hold none of that: a ValueError quotes what it could not read.
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
# Longer than any fact of ours. So a line stays below 4,096 bytes (PIPE_BUF), which a pipe takes in one piece: the
# processes of one command share theirs.
_MOST_CHARACTERS: Final = 256
_MOST_OF_A_TRACEBACK: Final = 2500
_MOST_FRAMES: Final = 30
_MOST_CAUSES: Final = 5
# Kinds that Python itself raises for mistakes in a program: they speak of types and names, never of values.
_SPEAK_OF_CODE: Final = frozenset(
    (
        AssertionError, AttributeError, ImportError, IndexError, ModuleNotFoundError, NameError, NotImplementedError,
        RecursionError, RuntimeError, TypeError, UnboundLocalError, ZeroDivisionError,
    )
)  # fmt: skip
# What a library begins to say, before it quotes anything; where it leaves places for values, the places.
_PLAIN: Final = re.compile(r"[\w ,.:-]{0,100}", re.ASCII)


class JsonLines(JsonFormatter):
    """One JSON object a line, in ASCII.

    Args:
        command: which of our commands this process runs.
    """

    def __init__(self, command: str) -> None:
        super().__init__(json_serializer=partial(json.dumps, separators=(",", ":")))
        self._command = command

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """What a line holds, in this order."""
        log_data["timestamp"] = _rfc3339(record.created)
        log_data["level"] = record.levelname.lower()
        log_data["logger"] = record.name
        log_data["event"] = _event(record)
        log_data["command"] = self._command
        log_data["pid"] = record.process
        log_data.update(_fields(record))

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        # The one control character that JSON leaves as it is.
        return str(super().format(record)).replace("\x7f", "\\u007f")

    def formatException(self, ei: Any) -> str:
        """Nothing: the traceback is a field of ours."""
        return ""


class ReadableLines(logging.Formatter):
    """`12:00:01.250 warning listener_reconnects channel=relay_wake`, a traceback indented below.

    Args:
        colours: whether the level of warnings and errors has one.
    """

    def __init__(self, *, colours: bool = False) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """The line, or the lines of a traceback too, without the last end."""
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
    """The facts that come with an event."""
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
    """Where an exception and what led to it came from, the first cause first; the end of it where it is long.

    The text of an exception is left out unless its kind speaks of code alone or is ours.
    """
    told: list[str] = []
    for cause in reversed(list(_causes(error))):
        frames = traceback.extract_tb(cause.__traceback__)[-_MOST_FRAMES:]
        for frame in frames:
            told.append(f'File "{frame.filename}", line {frame.lineno}, in {frame.name}')
            if frame.line:
                told.append(f"  {frame.line}")
        told.append(_named(cause))
    text = "\n".join(told)
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
    if kind in _SPEAK_OF_CODE or kind.__module__.partition(".")[0] == _OURS:
        return f"{name}: {_bounded(str(error))}"
    sqlstate = getattr(error, "sqlstate", None)
    if isinstance(sqlstate, str):
        return f"{name} (SQLSTATE {sqlstate})"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{name} ({errno.errorcode.get(error.errno, error.errno)})"
    return name
