"""When a delivery that failed is tried again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: Nothing waits longer than this, however far the doubling has gone.
LONGEST_WAIT_S: Final = 86_400.0
#: The largest part of a wait that is added to it at random, so that what failed together does not come back together.
JITTER: Final = 0.2


def wait_s(schedule: Sequence[float], failures: int, chance: float) -> float:
    """How long to wait after the failure number `failures`.

    Args:
        schedule: the waits in seconds after the first failure, the second and so on; past its end the last doubles.
        failures: how many attempts have failed, at least 1.
        chance: a random number from 0 up to 1, which becomes 0 to 20% of the wait.
    """
    past = failures - len(schedule)
    # More doublings than this pass the longest wait from any start that is worth the name.
    wait = schedule[failures - 1] if past <= 0 else schedule[-1] * 2 ** min(past, 64)
    return min(wait, LONGEST_WAIT_S) * (1 + JITTER * chance)
