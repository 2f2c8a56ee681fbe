"""Charts as inline SVG: no script, and colours that follow the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

_WIDTH, _HEIGHT = 350, 215
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 42
_COLOURS: Final = 6


class Series(NamedTuple):
    """One line of a chart: its name and its points."""

    name: str
    points: Sequence[tuple[float, float]]


class Axis(NamedTuple):
    """What stands beside an axis: its title, and labels at given places; places are found when there are none."""

    title: str
    labels: Sequence[tuple[float, str]] = ()


def lines(title: str, series: Sequence[Series], x: Axis, y: Axis, *, log: bool = False) -> str:
    """A line chart with a legend.

    Args:
        title: above it.
        series: at most six; empty ones are left out.
        x: below.
        y: to the left.
        log: a logarithmic y axis.
    """
    series = [each for each in series if each.points][:_COLOURS]
    if not series:
        return ""
    xs = [at for each in series for at, _ in each.points]
    ys = [value for each in series for _, value in each.points]
    low_x, high_x = min(xs), max(max(xs), min(xs) + 1e-9)
    ticks = _decades(ys) if log else _steps(max([*ys, 0.0]))
    low_y, high_y = ticks[0], ticks[-1]

    def across(at: float) -> float:
        return _LEFT + (at - low_x) / (high_x - low_x) * (_WIDTH - _LEFT - _RIGHT)

    def up(value: float) -> float:
        if log:
            share = math.log(max(value, low_y) / low_y) / math.log(high_y / low_y)
        else:
            share = (value - low_y) / (high_y - low_y)
        return _HEIGHT - _BOTTOM - min(1.0, max(0.0, share)) * (_HEIGHT - _TOP - _BOTTOM)

    drawn = [_horizontal(up(tick), _label(tick)) for tick in ticks]
    for at, text in x.labels or [(tick, _label(tick)) for tick in _steps(high_x) if low_x <= tick <= high_x]:
        drawn.append(f'<text x="{across(at):.1f}" y="{_HEIGHT - 24}" text-anchor="middle">{escape(text)}</text>')
    for number, each in enumerate(series):
        path = " ".join(f"{across(at):.1f},{up(value):.1f}" for at, value in each.points)
        drawn.append(f'<polyline class="s{number}" points="{path}"><title>{escape(each.name)}</title></polyline>')
    return _figure(title, drawn, x.title, y.title, [each.name for each in series])


def bars(title: str, values: Sequence[tuple[str, float]], x: str, y: str) -> str:
    """Return a chart with a bar for each label."""
    if not any(value for _, value in values):
        return ""
    ticks = _steps(max(value for _, value in values))
    room = (_WIDTH - _LEFT - _RIGHT) / len(values)
    depth = _HEIGHT - _TOP - _BOTTOM
    drawn = [_horizontal(_HEIGHT - _BOTTOM - tick / ticks[-1] * depth, _label(tick)) for tick in ticks]
    for place, (text, value) in enumerate(values):
        height = value / ticks[-1] * depth
        left = _LEFT + place * room
        drawn.append(
            f'<rect class="s0" x="{left + room * 0.12:.1f}" y="{_HEIGHT - _BOTTOM - height:.1f}" '
            f'width="{room * 0.76:.1f}" height="{height:.1f}"><title>{escape(text)}: {value:,.0f}</title></rect>'
            f'<text x="{left + room / 2:.1f}" y="{_HEIGHT - 24}" text-anchor="middle">{escape(text)}</text>'
        )
    return _figure(title, drawn, x, y, [])


def _figure(title: str, drawn: Sequence[str], x: str, y: str, names: Sequence[str]) -> str:
    legend = "".join(f'<span><i class="s{number}"></i>{escape(name)}</span>' for number, name in enumerate(names))
    return (
        f"<figure><figcaption>{escape(title)}<small>{escape(y)}</small></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
        f'{"".join(drawn)}<text class="x" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{escape(x)}</text>'
        f'</svg><p class="legend">{legend}</p></figure>'
    )


def _horizontal(y: float, text: str) -> str:
    return (
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
    )


def _steps(most: float) -> list[float]:
    """Return four to eight round steps from 0 to at least `most`."""
    if most <= 0:
        return [0.0, 1.0]
    rough = most / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [number * step for number in range(math.ceil(most / step - 1e-9) + 1)]


def _decades(values: Sequence[float]) -> list[float]:
    """Return 1, 2 and 5 in each decade, from the smallest value to the largest."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)) + 1e-9)
    ticks = [factor * 10.0**power for power in range(low, high + 1) for factor in (1, 2, 5)]
    first = max(place for place, tick in enumerate(ticks) if tick <= min(positive) * (1 + 1e-9))
    last = min(place for place, tick in enumerate(ticks) if tick >= max(positive) * (1 - 1e-9))
    return ticks[first : max(last, first + 1) + 1]


def _label(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if value == round(value) else f"{value:g}"
