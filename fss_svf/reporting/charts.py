"""Charts as SVG and bars as HTML. Their colours come from the page's style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from fss_svf.reporting.curves import Curve

_WIDTH, _HEIGHT = 480, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 34
# Number of colours in the page's style. Charts with more lines repeat them.
COLOURS = 8


@dataclass(frozen=True)
class Lines:
    """Curves with one colour and one entry in the legend. each: the unit in which the legend counts several curves."""

    name: str
    curves: Sequence[Curve]
    each: str = "layers"


def line_chart(title: str, series: Sequence[Lines], unit: str = "") -> str:
    """An SVG with title and legend, steps from left to right; an empty string if no curve has a point."""
    points = [point for lines in series for curve in lines.curves for point in curve]
    if not points:
        return ""
    steps = [step for step, _ in points]
    values = [value for _, value in points]
    across, up = ticks(min(steps), max(steps), 5), ticks(min(values), max(values), 5)
    x = _scale(min(across[0], *steps), max(across[-1], *steps), _LEFT, _WIDTH - _RIGHT)
    y = _scale(up[0], up[-1], _HEIGHT - _BOTTOM, _TOP)
    parts = []
    for value in up:
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for step in across:
        parts.append(f'<text x="{x(step):.1f}" y="{_HEIGHT - 16}" text-anchor="middle">{_short(step)}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 2}" text-anchor="end">step</text>')
    for number, lines in enumerate(series):
        for curve in lines.curves:
            path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in curve)
            colour = f"c{number % COLOURS}"
            if len(curve) == 1:
                step, value = curve[0]
                parts.append(f'<circle class="{colour} dot" cx="{x(step):.1f}" cy="{y(value):.1f}" r="3"/>')
            else:
                thin = " thin" if len(lines.curves) > 1 else ""
                parts.append(f'<polyline class="{colour}{thin}" points="{path}"/>')
    ends = [f"{lines.name}{_end(lines, unit)}" for lines in series]
    description = escape(f"{title}: {'; '.join(ends)}", quote=True)
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{description}">{"".join(parts)}</svg>'
        f"{legend(ends)}</figure>"
    )


def legend(names: Sequence[str]) -> str:
    """A list of names, the n-th with the n-th colour."""
    entries = (f'<li><span class="key b{i % COLOURS}"></span>{escape(name)}</li>' for i, name in enumerate(names))
    return f'<ul class="legend">{"".join(entries)}</ul>'


def bars(caption: str, names: Sequence[str], lines: Sequence[tuple[str, Sequence[float | None]]]) -> str:
    """A table of bars. Each line is a row: its label and, for each of `names`, a fraction or None as a bar."""
    rows = []
    for label, values in lines:
        drawn = []
        for i, (name, value) in enumerate(zip(names, values)):
            width, number = (0.0, "-") if value is None else (100 * value, f"{100 * value:.1f}")
            drawn.append(
                f'<div class="bar" title="{escape(name, quote=True)}"><span class="b{i % COLOURS}" '
                f'style="width:{width:.1f}%"></span><b>{number}</b></div>'
            )
        rows.append(f'<tr><th scope="row">{escape(label)}</th><td>{"".join(drawn)}</td></tr>')
    return f'<table class="bars"><caption>{escape(caption)}</caption><tbody>{"".join(rows)}</tbody></table>'


def ticks(low: float, high: float, about: int) -> list[float]:
    """About `about` round values, the first at or below `low`, the last at or above `high`."""
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / about
    size = 10.0 ** floor(log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * (1 - 1e-9))
    return [step * i for i in range(floor(low / step + 1e-9), ceil(high / step - 1e-9) + 1)]


class _scale:
    """Maps values to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.start, self.factor = low, start, (end - start) / (high - low)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.factor


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _end(lines: Lines, unit: str) -> str:
    """The last value of a single curve, or the number of curves, for the legend."""
    if len(lines.curves) != 1 or not lines.curves[0]:
        return f" ({len(lines.curves)} {lines.each})" if len(lines.curves) > 1 else ""
    return f" {lines.curves[0][-1][1]:.3g}{unit}"
