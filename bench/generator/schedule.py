"""The times at which requests are due, computed in advance so that the server cannot affect them."""

from __future__ import annotations

import random
from typing import Final

#: Between the requests of a burst: about as long as it takes to write one.
_APART_S: Final = 20e-6


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Return arrivals of a Poisson process, in seconds from the start, exactly `rate * seconds` of them.

    Given their number, the arrivals of a Poisson process are independent and uniform; so the rate is met exactly.
    """
    draw = random.Random(seed)
    return sorted(draw.uniform(0.0, seconds) for _ in range(round(rate * seconds)))


def even(rate: float, seconds: float) -> list[float]:
    """Return evenly spaced arrivals."""
    return [number / rate for number in range(round(rate * seconds))]


def bursts(rate: float, seconds: float, size: int) -> list[float]:
    """Return arrivals in bursts of `size`, evenly spaced. Those of a burst follow immediately after each other."""
    return [number // size * size / rate + number % size * _APART_S for number in range(round(rate * seconds))]
