"""How a command ends: the exit codes of the contract, and one line on stderr instead of a traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import click

from relay.config.settings import BadSetting
from relay.telemetry.colour import RED, YELLOW, is_wanted, painted
from relay.values.database_url import DatabaseUrl

FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
NOT_AUTHORIZED: Final = 4
UNREACHABLE: Final = 5

_STDOUT: Final = 1
_STDERR: Final = 2

# The other end takes no more: a full disk or quota, a file that is as large as it may be, a device that fails.
_NOT_WRITTEN: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EBADF)


class ExitWith(Exception):
    """Ends the command with `code`, after `line` on stderr.

    Args:
        code: one of the codes above.
        line: what is wrong and what would mend it, without the leading `relay:`; empty when a child has said
            it.
    """

    def __init__(self, code: int, line: str) -> None:
        super().__init__(line)
        self.code = code
        self.line = line


def unreachable(url: str | None, error: Exception) -> ExitWith:
    """Say which database failed the command, and how."""
    return ExitWith(UNREACHABLE, f"DATABASE_URL: {DatabaseUrl.read(url or '').shown}: {error}")


def printable(text: str) -> str:
    """The text for a terminal: what would start another line, steer it or hide is escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def complain(line: str) -> None:
    """Write one line to stderr: what ends the command."""
    _say("relay:", line, RED)


def warn(line: str) -> None:
    """Write one line to stderr: what the operator may want to mend, though the command goes on."""
    _say("relay: warning:", line, YELLOW)


def _say(head: str, line: str, colour: str) -> None:
    if is_wanted(_STDERR, os.environ):
        head = painted(head, colour)
    # Where stderr takes nothing, the exit code still tells.
    with suppress(OSError, ValueError):
        print(head, printable(line), file=sys.stderr, flush=True)


def code_of(command: Callable[[], object]) -> int:
    """Run `command` and turn what it raises into its exit code, the line said; bugs keep their traceback."""
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
        # The reader of our stdout has left, as in `relay keys list | head`: nothing to tell it.
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
    """Send what is still to be written nowhere: Python would try again at its end, and complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _STDOUT)
    os.close(nowhere)
