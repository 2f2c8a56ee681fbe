"""When requests are due: made before the first is sent, so that nothing the server does can move it."""

from __future__ import annotations

import random
from typing import Final

#: Between the requests of a burst: about as long as it takes to write one.
_APART_S: Final = 20e-6


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrivals of a Poisson process, in seconds from the start; exactly `rate * seconds` of them.

    Given their number, the arrivals of a Poisson process are independent and uniform; so the rate is met exactly.
    """
    draw = random.Random(seed)
    return sorted(draw.uniform(0.0, seconds) for _ in range(round(rate * seconds)))


def even(rate: float, seconds: float) -> list[float]:
    """Arrivals as far from each other as can be."""
    return [number / rate for number in range(round(rate * seconds))]


def bursts(rate: float, seconds: float, size: int) -> list[float]:
    """Arrivals of `size` at a time, evenly spaced; those of a burst follow one right after the other."""
    return [number // size * size / rate + number % size * _APART_S for number in range(round(rate * seconds))]
