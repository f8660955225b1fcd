"""Outlines of the toy dataset's twenty things, drawn by hand in a square from -1 to 1 with y pointing down.

A thing is a list of parts from back to front. A part is a closed polygon and its tone: which of an object's colours
fills it. The things are those that a child draws, so that a network trained on photographs knows something of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (N, 2) x, y
Tone = Literal["main", "second", "light", "dark"]


@dataclass(frozen=True)
class Part:
    """A closed polygon (N, 2), and the tone that fills it."""

    points: Points
    tone: Tone = "main"


def _poly(*xy: float, tone: Tone = "main") -> Part:
    """Straight lines between corners x0, y0, x1, y1, ...; cut fine, so that a bent object bends its sides too."""
    corners = np.array(xy, np.float64).reshape(-1, 2)
    steps = np.linspace(0, 1, 8, endpoint=False)[:, None]
    return Part(np.concatenate([a + (b - a) * steps for a, b in zip(corners, np.roll(corners, -1, axis=0))]), tone)


def _oval(x: float, y: float, rx: float, ry: float, tone: Tone = "main", turn: float = 0.0) -> Part:
    """An ellipse about (x, y), turned by `turn` degrees."""
    t, a = np.linspace(0, 2 * np.pi, 48, endpoint=False), np.deg2rad(turn)
    u, v = rx * np.cos(t), ry * np.sin(t)
    return Part(np.stack([x + u * np.cos(a) - v * np.sin(a), y + u * np.sin(a) + v * np.cos(a)], axis=1), tone)


def _blob(*xy: float, tone: Tone = "main") -> Part:
    """A smooth closed curve through the points x0, y0, x1, y1, ... (Catmull-Rom)."""
    return Part(_smooth(np.array(xy, np.float64).reshape(-1, 2), closed=True), tone)


def _band(*xy: float, width: float, tone: Tone = "dark") -> Part:
    """A strip of this width along a smooth open curve through the points."""
    line = _smooth(np.array(xy, np.float64).reshape(-1, 2), closed=False)
    along = np.gradient(line, axis=0)
    across = along[:, ::-1] * (1, -1) / np.maximum(np.hypot(*along.T), 1e-9)[:, None] * (width / 2)
    return Part(np.concatenate([line + across, (line - across)[::-1]]), tone)


def _smooth(points: Points, closed: bool) -> Points:
    p = np.pad(points, ((1, 2), (0, 0)), mode="wrap") if closed else np.pad(points, ((1, 1), (0, 0)), mode="edge")
    t = np.linspace(0, 1, 8, endpoint=False)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:])
    ]
    return np.concatenate([*pieces, p[-2:-1]] if not closed else pieces)


def _mirrored(*parts: Part) -> list[Part]:
    """The parts and their mirror images, left and right."""
    return [*parts, *(Part(part.points * (-1, 1), part.tone) for part in parts)]


def _ring(x: float, y: float, count: int, reach: float, petal: Callable[[float, float, float], Part]) -> list[Part]:
    """`count` parts around (x, y) at a distance: petal(x, y, degrees)."""
    angles = np.arange(count) * 360 / count
    return [petal(x + reach * np.cos(np.deg2rad(a)), y + reach * np.sin(np.deg2rad(a)), float(a)) for a in angles]


def _wheel(x: float, y: float, r: float) -> list[Part]:
    return [_oval(x, y, r, r, "dark"), _oval(x, y, r * 0.45, r * 0.45, "light")]


def _eyes(x: float, y: float, r: float) -> list[Part]:
    return _mirrored(_oval(x, y, r, r * 1.3, "light"), _oval(x, y + r * 0.2, r * 0.55, r * 0.8, "dark"))


# fmt: off
# Coordinates are read in rows.


def _cat() -> list[Part]:
    return [
        _band(0.5, 0.8, 0.95, 0.7, 0.85, 0.2, 0.65, 0.0, width=0.16, tone="main"),
        _blob(0, -0.1, 0.5, 0.4, 0.55, 0.95, 0, 1.0, -0.55, 0.95, -0.5, 0.4),
        _oval(0, 0.62, 0.25, 0.34, "light"),
        *_mirrored(_poly(0.12, -0.72, 0.52, -1.0, 0.56, -0.4), _poly(0.27, -0.72, 0.46, -0.86, 0.48,
            -0.55, tone="second")),
        _oval(0, -0.38, 0.56, 0.44),
        *_eyes(0.22, -0.45, 0.11),
        _poly(-0.07, -0.3, 0.07, -0.3, 0, -0.21, tone="second"),
        *_mirrored(
            _band(0.12, -0.2, 0.42, -0.26, 0.72, -0.3, width=0.03),
            _band(0.12, -0.16, 0.42, -0.14, 0.7, -0.1, width=0.03),
            _oval(0.22, 0.96, 0.17, 0.09, "light"),
        ),
    ]


def _car() -> list[Part]:
    return [
        _blob(-0.62, -0.02, -0.42, -0.42, -0.05, -0.5, 0.3, -0.44, 0.6, -0.02, 0.1, 0.1),
        _blob(-1.0, 0.1, -0.9, -0.05, -0.5, -0.1, 0.4, -0.1, 0.88, 0.0, 1.0, 0.15, 0.98, 0.36, 0.5,
            0.42, -0.5, 0.42, -0.98, 0.36),
        _poly(-0.46, -0.08, -0.36, -0.34, -0.06, -0.4, -0.06, -0.08, tone="light"),
        _poly(0.04, -0.08, 0.04, -0.4, 0.26, -0.35, 0.46, -0.08, tone="light"),
        _oval(0.9, 0.12, 0.07, 0.07, "second"),
        _band(-0.95, 0.22, 0.0, 0.2, 0.95, 0.24, width=0.07, tone="second"),
        *_wheel(-0.52, 0.4, 0.24),
        *_wheel(0.52, 0.4, 0.24),
    ]


def _apple() -> list[Part]:
    return [
        _band(0.0, -0.5, 0.03, -0.75, 0.14, -0.95, width=0.1),
        _blob(0.08, -0.72, 0.3, -0.95, 0.62, -0.92, 0.42, -0.68, tone="second"),
        _blob(0, -0.5, 0.4, -0.66, 0.78, -0.4, 0.8, 0.15, 0.5, 0.78, 0.18, 0.88, 0, 0.8, -0.18, 0.88,
            -0.5, 0.78, -0.8, 0.15, -0.78, -0.4, -0.4, -0.66),
        _oval(-0.44, -0.15, 0.1, 0.24, "light", 25),
    ]


def _umbrella() -> list[Part]:
    def panel(left: float, right: float, tone: Tone) -> Part:
        low, middle = 0.05, (left + right) / 2
        t = np.linspace(0, 1, 12)[:, None]
        rim = [(left, low), (middle, low - 0.1), (right, low)]
        down = [(x * (1 - (1 - s) ** 2) ** 0.5, -0.85 + 0.9 * s) for x, s in ((right, v) for v in t[::-1, 0])]
        up = [(x * (1 - (1 - s) ** 2) ** 0.5, -0.85 + 0.9 * s) for x, s in ((left, v) for v in t[:, 0])]
        return Part(np.array(up + rim[1:2] + down), tone)

    return [
        _band(0, -0.9, 0, 0.0, 0, 0.72, 0.06, 0.9, 0.2, 0.95, 0.32, 0.85, 0.34, 0.72, width=0.08),
        panel(-1.0, -0.5, "main"),
        panel(-0.5, 0.0, "second"),
        panel(0.0, 0.5, "main"),
        panel(0.5, 1.0, "second"),
        _oval(0, -0.9, 0.05, 0.09, "dark"),
    ]


def _house() -> list[Part]:
    return [
        _poly(0.38, -0.9, 0.6, -0.9, 0.6, -0.3, 0.38, -0.3, tone="dark"),
        _poly(-0.72, -0.15, 0.72, -0.15, 0.72, 0.9, -0.72, 0.9),
        _poly(-0.95, -0.1, 0, -0.95, 0.95, -0.1, tone="second"),
        _poly(-0.14, 0.36, 0.14, 0.36, 0.14, 0.9, -0.14, 0.9, tone="dark"),
        *_mirrored(_poly(0.28, 0.1, 0.58, 0.1, 0.58, 0.42, 0.28, 0.42, tone="light")),
        _oval(0, -0.42, 0.14, 0.14, "light"),
    ]


def _fish() -> list[Part]:
    return [
        _poly(0.5, 0.0, 1.0, -0.48, 0.9, 0.0, 1.0, 0.48, tone="second"),
        _blob(-0.3, -0.4, 0.1, -0.75, 0.45, -0.3, tone="second"),
        _blob(-1.0, 0.02, -0.6, -0.42, 0.0, -0.46, 0.62, -0.04, 0.62, 0.06, 0.0, 0.46, -0.6, 0.42),
        _band(-0.4, -0.38, -0.28, 0.0, -0.4, 0.38, width=0.06),
        _band(0.0, -0.36, 0.1, 0.0, 0.0, 0.36, width=0.1, tone="light"),
        _band(0.3, -0.22, 0.36, 0.0, 0.3, 0.22, width=0.09, tone="light"),
        _oval(-0.68, -0.1, 0.11, 0.11, "light"),
        _oval(-0.7, -0.1, 0.05, 0.06, "dark"),
        _blob(-0.2, 0.1, 0.06, 0.18, -0.12, 0.36, tone="second"),
    ]


def _tree() -> list[Part]:
    return [
        _poly(-0.13, 0.2, 0.13, 0.2, 0.2, 1.0, -0.2, 1.0, tone="dark"),
        _poly(0, -0.35, 0.82, 0.62, -0.82, 0.62),
        _poly(0, -0.72, 0.64, 0.2, -0.64, 0.2, tone="second"),
        _poly(0, -1.0, 0.45, -0.28, -0.45, -0.28),
        _oval(-0.2, -0.05, 0.07, 0.07, "light"),
        _oval(0.28, 0.42, 0.07, 0.07, "light"),
        _oval(0.06, -0.5, 0.06, 0.06, "light"),
        _oval(-0.4, 0.46, 0.07, 0.07, "light"),
    ]


def _mug() -> list[Part]:
    return [
        _band(0.45, -0.35, 0.85, -0.38, 0.95, 0.05, 0.75, 0.42, 0.45, 0.45, width=0.16, tone="main"),
        _poly(-0.7, -0.6, 0.55, -0.6, 0.5, 0.8, 0.3, 0.9, -0.45, 0.9, -0.65, 0.8),
        _poly(-0.69, 0.0, 0.53, 0.0, 0.52, 0.36, -0.67, 0.36, tone="second"),
        _oval(-0.075, -0.6, 0.63, 0.17, "light"),
        _oval(-0.075, -0.57, 0.52, 0.11, "dark"),
    ]


def _balloon() -> list[Part]:
    return [
        *_mirrored(_band(0.3, 0.2, 0.24, 0.45, 0.17, 0.7, width=0.04)),
        _blob(0, -1.0, 0.52, -0.88, 0.78, -0.45, 0.62, 0.0, 0.24, 0.38, 0, 0.42, -0.24, 0.38, -0.62,
            0.0, -0.78, -0.45, -0.52, -0.88),
        *_mirrored(_blob(0.24, -0.96, 0.6, -0.45, 0.2, 0.36, 0.3, -0.4, tone="second")),
        _blob(0, -1.0, 0.12, -0.45, 0, 0.4, -0.12, -0.45, tone="light"),
        _poly(-0.24, 0.66, 0.24, 0.66, 0.18, 1.0, -0.18, 1.0, tone="dark"),
    ]


def _clock() -> list[Part]:
    return [
        *_mirrored(_band(0.4, 0.6, 0.5, 0.8, 0.6, 0.98, width=0.14), _oval(0.46, -0.7, 0.32, 0.22, "second", 35)),
        _band(-0.3, -0.82, 0, -0.98, 0.3, -0.82, width=0.08),
        _oval(0, 0.08, 0.78, 0.78),
        _oval(0, 0.08, 0.62, 0.62, "light"),
        *_ring(0, 0.08, 12, 0.5, lambda x, y, a: _oval(x, y, 0.06 if a % 90 == 0 else 0.035, 0.03, "dark", a)),
        _band(0, 0.1, 0.02, -0.1, 0.04, -0.3, width=0.07),
        _band(0, 0.08, 0.15, 0.16, 0.3, 0.24, width=0.08, tone="second"),
        _oval(0, 0.08, 0.07, 0.07, "dark"),
    ]


def _duck() -> list[Part]:
    return [
        _poly(-1.0, -0.42, -0.62, -0.55, -0.6, -0.32, -0.98, -0.3, tone="second"),
        _blob(-0.45, 0.0, 0.1, 0.1, 0.6, 0.0, 1.0, -0.3, 0.88, 0.35, 0.5, 0.72, -0.2, 0.78, -0.62, 0.5),
        _band(-0.36, -0.4, -0.3, 0.1, -0.2, 0.4, width=0.36, tone="main"),
        _oval(-0.38, -0.42, 0.36, 0.34),
        _blob(-0.05, 0.2, 0.5, 0.18, 0.66, 0.3, 0.3, 0.55, 0.0, 0.45, tone="light"),
        _oval(-0.5, -0.5, 0.08, 0.09, "dark"),
        *[_band(x, 0.72, x, 0.85, x - 0.16, 0.98, width=0.08, tone="second") for x in (0.1, 0.4)],
    ]


def _boat() -> list[Part]:
    return [
        _poly(-0.04, -1.0, 0.04, -1.0, 0.04, 0.45, -0.04, 0.45, tone="dark"),
        _poly(0.08, -0.92, 0.72, 0.3, 0.08, 0.3, tone="light"),
        _poly(-0.08, -0.7, -0.08, 0.3, -0.66, 0.3, tone="second"),
        _blob(-0.95, 0.42, 0, 0.46, 0.95, 0.42, 0.66, 0.86, 0, 0.92, -0.6, 0.88),
        _band(-0.78, 0.58, 0, 0.62, 0.8, 0.58, width=0.09, tone="light"),
    ]


def _mushroom() -> list[Part]:
    return [
        _blob(-0.2, 0.0, 0.2, 0.0, 0.26, 0.6, 0.36, 0.95, 0, 1.0, -0.36, 0.95, -0.26, 0.6, tone="light"),
        _blob(0, -0.9, 0.55, -0.72, 0.92, -0.2, 0.85, 0.1, 0.4, 0.16, 0, 0.18, -0.4, 0.16, -0.85, 0.1,
            -0.92, -0.2, -0.55, -0.72),
        *[_oval(x, y, r, r * 0.9, "light") for x, y, r in ((-0.45, -0.35, 0.15), (0.1, -0.6, 0.14),
            (0.5, -0.2, 0.16), (-0.05, -0.1, 0.1))],
        _band(-0.3, 0.28, 0, 0.36, 0.3, 0.28, width=0.12, tone="second"),
    ]


def _key() -> list[Part]:
    angles = np.linspace(0, 330, 12)
    hoop = [c for a in angles for c in (-0.58 + 0.3 * np.cos(np.deg2rad(a)), 0.3 * np.sin(np.deg2rad(a)))]
    return [
        _poly(-0.3, -0.1, 1.0, -0.1, 1.0, 0.1, -0.3, 0.1),
        _poly(0.5, 0.1, 0.64, 0.1, 0.64, 0.38, 0.5, 0.38),
        _poly(0.78, 0.1, 0.96, 0.1, 0.96, 0.46, 0.78, 0.46),
        _band(*hoop, hoop[0], hoop[1], width=0.24, tone="main"),
        _oval(-0.2, 0, 0.1, 0.2, "second"),
        _oval(-0.58, -0.32, 0.05, 0.05, "light"),
    ]


def _bus() -> list[Part]:
    return [
        _poly(-0.98, -0.55, -0.9, -0.62, 0.9, -0.62, 0.98, -0.5, 1.0, 0.5, -1.0, 0.5),
        *[_poly(x, -0.42, x + 0.3, -0.42, x + 0.3, -0.04, x, -0.04, tone="light") for x in (-0.86, -0.5,
            -0.14, 0.22)],
        _poly(0.62, -0.42, 0.9, -0.42, 0.94, 0.42, 0.62, 0.42, tone="light"),
        _poly(-1.0, 0.12, 0.58, 0.12, 0.58, 0.28, -1.0, 0.28, tone="second"),
        *_wheel(-0.56, 0.5, 0.2),
        *_wheel(0.36, 0.5, 0.2),
    ]


def _rabbit() -> list[Part]:
    return [
        *_mirrored(_oval(0.26, -0.56, 0.15, 0.46, "main", 12), _oval(0.26, -0.56, 0.07, 0.34, "second", 12)),
        _blob(0, 0.15, 0.46, 0.45, 0.5, 0.9, 0, 1.0, -0.5, 0.9, -0.46, 0.45),
        _oval(0, 0.08, 0.44, 0.4),
        *_eyes(0.17, 0.0, 0.08),
        _oval(0, 0.16, 0.07, 0.05, "second"),
        _poly(-0.08, 0.27, 0.08, 0.27, 0.07, 0.4, -0.07, 0.4, tone="light"),
        _oval(0, 0.72, 0.22, 0.2, "light"),
        *_mirrored(_oval(0.32, 0.93, 0.22, 0.09, "light")),
    ]


def _flower() -> list[Part]:
    return [
        _band(0, -0.2, 0.05, 0.4, 0, 1.0, width=0.09),
        _blob(0.03, 0.62, 0.3, 0.35, 0.6, 0.34, 0.36, 0.62, tone="second"),
        _blob(0.0, 0.8, -0.3, 0.52, -0.6, 0.54, -0.34, 0.8, tone="second"),
        *_ring(0, -0.4, 7, 0.36, lambda x, y, a: _oval(x, y, 0.27, 0.16, "main", a)),
        _oval(0, -0.4, 0.2, 0.2, "light"),
        _oval(0, -0.4, 0.1, 0.1, "dark"),
    ]


def _guitar() -> list[Part]:
    return [
        _poly(-0.08, -0.75, 0.08, -0.75, 0.08, 0.2, -0.08, 0.2, tone="dark"),
        _poly(-0.15, -1.0, 0.15, -1.0, 0.12, -0.72, -0.12, -0.72, tone="second"),
        _blob(0, -0.12, 0.3, -0.1, 0.38, 0.12, 0.3, 0.3, 0.52, 0.5, 0.52, 0.8, 0.3, 0.98, 0, 1.0, -0.3,
            0.98, -0.52, 0.8, -0.52, 0.5, -0.3, 0.3, -0.38, 0.12, -0.3, -0.1),
        _oval(0, 0.32, 0.17, 0.17, "light"),
        _oval(0, 0.32, 0.11, 0.11, "dark"),
        _poly(-0.2, 0.7, 0.2, 0.7, 0.2, 0.78, -0.2, 0.78, tone="dark"),
        _band(0, -0.7, 0, 0.0, 0, 0.72, width=0.03, tone="light"),
    ]


def _butterfly() -> list[Part]:
    return [
        *_mirrored(
            _band(0.03, -0.45, 0.15, -0.75, 0.32, -0.92, width=0.05),
            _blob(0.04, -0.05, 0.3, -0.62, 0.85, -0.8, 0.98, -0.45, 0.7, 0.02),
            _blob(0.04, 0.0, 0.55, 0.05, 0.8, 0.4, 0.55, 0.8, 0.25, 0.62, tone="second"),
            _oval(0.66, -0.42, 0.16, 0.18, "light"),
            _oval(0.5, 0.4, 0.12, 0.14, "light"),
            _oval(0.66, -0.42, 0.07, 0.08, "dark"),
        ),
        _oval(0, 0.05, 0.09, 0.55, "dark"),
        _oval(0, -0.45, 0.11, 0.12, "dark"),
    ]


def _aeroplane() -> list[Part]:
    return [
        _poly(0.62, -0.05, 0.98, -0.62, 1.0, -0.6, 0.9, 0.05, tone="second"),
        _poly(0.0, -0.05, 0.38, -0.55, 0.52, -0.55, 0.34, -0.02, tone="second"),
        _blob(-1.0, 0.05, -0.78, -0.14, -0.3, -0.2, 0.4, -0.16, 1.0, -0.12, 0.9, 0.08, 0.4, 0.2, -0.4,
            0.24, -0.85, 0.2),
        _poly(-0.2, 0.06, 0.22, 0.06, 0.62, 0.66, 0.42, 0.68, tone="second"),
        *[_oval(x, -0.04, 0.055, 0.06, "light") for x in (-0.45, -0.25, -0.05, 0.15, 0.35, 0.55)],
        _blob(-0.9, -0.02, -0.74, -0.1, -0.64, -0.02, -0.74, 0.04, tone="dark"),
    ]


# fmt: on

# Fold i of the contiguous partition is things 5i + 1 .. 5i + 5: each has animals or plants, and things with corners.
THINGS: dict[str, Callable[[], list[Part]]] = {
    "cat": _cat, "car": _car, "apple": _apple, "umbrella": _umbrella, "house": _house,
    "fish": _fish, "tree": _tree, "mug": _mug, "balloon": _balloon, "clock": _clock,
    "duck": _duck, "boat": _boat, "mushroom": _mushroom, "key": _key, "bus": _bus,
    "rabbit": _rabbit, "flower": _flower, "guitar": _guitar, "butterfly": _butterfly, "aeroplane": _aeroplane,
}  # fmt: skip


def _centred(parts: list[Part]) -> list[Part]:
    """The parts with their common bounding box centred, its longer side from -1 to 1."""
    points = np.concatenate([part.points for part in parts])
    low, high = points.min(axis=0), points.max(axis=0)
    return [Part((part.points - (low + high) / 2) * (2 / (high - low).max()), part.tone) for part in parts]


PARTS: dict[str, list[Part]] = {name: _centred(draw()) for name, draw in THINGS.items()}
