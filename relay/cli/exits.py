"""Exit codes of the commands, and one line on stderr instead of a traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import click

from relay.config.environment import BadSetting
from relay.telemetry.colour import RED, YELLOW, is_wanted, painted
from relay.values.database_url import DatabaseUrl

FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
NOT_AUTHORIZED: Final = 4
UNREACHABLE: Final = 5

_STDOUT: Final = 1
_STDERR: Final = 2

# The output cannot be written: a full disk or quota, the largest file size, a failing device.
_NOT_WRITTEN: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EBADF)


class ExitWith(Exception):
    """End the command with `code`, after `line` on stderr.

    Args:
        code: one of the codes above.
        line: what is wrong and what to do, without the leading `relay:`; empty if a child has printed it.
    """

    def __init__(self, code: int, line: str) -> None:
        super().__init__(line)
        self.code = code
        self.line = line


def unreachable(url: str | None, error: Exception) -> ExitWith:
    """Return the error for a database that failed, naming it and the reason."""
    return ExitWith(UNREACHABLE, f"DATABASE_URL: {DatabaseUrl.read(url or '').shown}: {error}")


def printable(text: str) -> str:
    """Escape line breaks, control characters and invisible characters for a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def complain(line: str) -> None:
    """Print the error that ends the command to stderr."""
    _say("relay:", line, RED)


def warn(line: str) -> None:
    """Print a warning to stderr. The command goes on."""
    _say("relay: warning:", line, YELLOW)


def _say(head: str, line: str, colour: str) -> None:
    if is_wanted(_STDERR, os.environ):
        head = painted(head, colour)
    # If stderr cannot be written, the exit code still tells.
    with suppress(OSError, ValueError):
        print(head, printable(line), file=sys.stderr, flush=True)


def code_of(command: Callable[[], object]) -> int:
    """Run `command`, print the error it raises and return its exit code. Bugs keep their traceback."""
    try:
        command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except ExitWith as stop:
        if stop.line:
            complain(stop.line)
        return stop.code
    except BadSetting as bad:
        complain(str(bad))
        return USAGE
    except click.UsageError as usage:
        complain(usage.format_message())
        return USAGE
    except click.Abort:
        complain("interrupted")
        return FAILED
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except BrokenPipeError:
        # The reader of stdout has left, as in `relay keys list | head`. No message.
        _drop_stdout()
        return FAILED
    except OSError as error:
        if error.errno not in _NOT_WRITTEN:
            raise
        where = f" {error.filename}" if error.filename else ""
        complain(f"cannot write{where}: {error.strerror}")
        _drop_stdout()
        return FAILED
    return 0


def _drop_stdout() -> None:
    """Discard buffered output. Python would try to write it at exit, and complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _STDOUT)
    os.close(nowhere)
