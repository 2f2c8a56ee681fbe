"""Errors during startup on this machine."""

from __future__ import annotations


class StartupError(Exception):
    """A failed startup that the operator can fix.

    Args:
        line: one sentence on what is wrong and what to do; empty if a child has printed it.
        code: the exit code of the process.
    """

    def __init__(self, line: str, code: int = 1) -> None:
        super().__init__(line)
        self.line = line
        self.code = code


class ChildEnded(StartupError):
    """A child that exited before it was ready. Its own line is on stderr.

    Args:
        name: the name of the child.
        returncode: as in subprocess, negative for a signal.
    """

    def __init__(self, name: str, returncode: int) -> None:
        # A child killed by a signal has printed nothing.
        line = f"{name} was ended by signal {-returncode} while starting" if returncode < 0 else ""
        super().__init__(line, returncode if returncode > 0 else 1)
        self.name = name
        self.returncode = returncode
