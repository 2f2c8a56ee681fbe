"""How a command ends: the exit codes of the contract, and one line on stderr instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

import click

from relay.config import BadSetting

FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
NOT_AUTHORIZED: Final = 4
UNREACHABLE: Final = 5


class Stop(Exception):
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


def printable(text: str) -> str:
    """The text for a terminal: what would start another line, steer it or hide is escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def complain(line: str) -> None:
    """Write one line to stderr."""
    print(f"relay: {printable(line)}", file=sys.stderr, flush=True)


def code_of(command: Callable[[], object]) -> int:
    """Run `command` and turn what it raises into its exit code, the line said; bugs keep their traceback."""
    try:
        command()
    except Stop as stop:
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
        # The reader of our stdout has left, as in `relay config | head`: nothing to tell it.
        sys.stderr.close()
        return FAILED
    return 0
