"""Why something on this machine could not run."""

from __future__ import annotations


class StartupError(Exception):
    """What the operator can mend.

    Args:
        line: one sentence saying what is wrong and what would mend it; empty when a child said it already.
        code: what the process shall exit with.
    """

    def __init__(self, line: str, code: int = 1) -> None:
        super().__init__(line)
        self.line = line
        self.code = code


class ChildEnded(StartupError):
    """A child ended before it was ready; its own line is on stderr.

    Args:
        name: which child.
        returncode: as subprocess gives it, below zero for a signal.
    """

    def __init__(self, name: str, returncode: int) -> None:
        # A child that a signal ended has said nothing.
        line = f"{name} was ended by signal {-returncode} while starting" if returncode < 0 else ""
        super().__init__(line, returncode if returncode > 0 else 1)
        self.name = name
        self.returncode = returncode
