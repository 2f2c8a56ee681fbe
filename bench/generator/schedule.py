"""When requests are due: made before the first is sent, so that nothing the server does can move it."""

from __future__ import annotations

import random


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrivals of a Poisson process, in seconds from the start; exactly `rate * seconds` of them.

    Given their number, the arrivals of a Poisson process are independent and uniform; so the rate is met exactly.
    """
    draw = random.Random(seed)
    return sorted(draw.uniform(0.0, seconds) for _ in range(round(rate * seconds)))
