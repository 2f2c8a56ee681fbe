"""Reports of statements that PostgreSQL rejects. Only an operator can solve these."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from relay.store.errors import StatementRejected

_log = logging.getLogger("relay.store")

_REPEAT_S: Final = 60.0


class Rejections:
    """Logs an error for each rejected statement, at most once a minute.

    Args:
        active: False to report nothing yet: a command reports itself what fails at startup.
    """

    def __init__(self, *, active: bool = True) -> None:
        self.active = active
        self._logged_at: dict[str, float] = {}
        #: Called with each rejection.
        self.on_rejected: Callable[[], None] = lambda: None

    def report(self, statement: str, error: StatementRejected) -> None:
        """Report that a named statement was rejected."""
        if not self.active:
            return
        self.on_rejected()
        now = time.monotonic()
        logged_at = self._logged_at.get(statement)
        if logged_at is None or now - logged_at >= _REPEAT_S:
            self._logged_at[statement] = now
            extra = {"statement": statement, "sqlstate": error.sqlstate, "reason": str(error)}
            _log.error("statement_rejected", extra=extra)
