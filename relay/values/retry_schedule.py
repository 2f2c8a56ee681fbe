"""The waits between the attempts of a delivery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: The limit on a wait, before jitter.
LONGEST_WAIT_S: Final = 86_400.0
#: The maximum random addition, as a share of the wait. It spreads the retries of deliveries that failed together.
JITTER: Final = 0.2


def wait_s(schedule: Sequence[float], failures: int, chance: float) -> float:
    """Return the seconds to wait after a number of failures.

    Args:
        schedule: the waits in seconds after the first failure, the second and so on. Past its end the last one doubles.
        failures: the number of attempts that have failed, at least 1.
        chance: a random number from 0 to 1. It adds 0 to 20% to the wait.
    """
    past = failures - len(schedule)
    # 64 doublings exceed the longest wait from any sensible start.
    wait = schedule[failures - 1] if past <= 0 else schedule[-1] * 2 ** min(past, 64)
    return min(wait, LONGEST_WAIT_S) * (1 + JITTER * chance)
