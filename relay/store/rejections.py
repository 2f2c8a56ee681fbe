"""Report statements that PostgreSQL rejects, which only an operator can mend."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from relay.store.errors import StatementRejected

_log = logging.getLogger("relay.store")

_REPEAT_S: Final = 60.0


class Rejections:
    """Log an error for each rejected statement, at most once a minute, whoever runs it and however often."""

    def __init__(self) -> None:
        self._logged_at: dict[str, float] = {}
        #: Called with each rejection.
        self.on_rejected: Callable[[], None] = lambda: None

    def report(self, statement: str, error: StatementRejected) -> None:
        """Report that a named statement was rejected."""
        self.on_rejected()
        now = time.monotonic()
        logged_at = self._logged_at.get(statement)
        if logged_at is None or now - logged_at >= _REPEAT_S:
            self._logged_at[statement] = now
            extra = {"statement": statement, "sqlstate": error.sqlstate, "reason": str(error)}
            _log.error("statement_rejected", extra=extra)
