"""A procedural segmentation dataset that needs no download: twenty drawn things, each in seven drawing styles.

What makes it a few-shot test rather than a colour puzzle:

* an object's colours and its style are drawn without looking at its class, so a support may show a red apple in flat
  colour where the query has a green one in hatched lines;
* every object is turned, mirrored, stretched and bent by a hand of its own.

Networks trained on photographs know something of such things, as of those in photographs. `toy_things.py` has the outlines.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fss_svf.data.toy_things import PARTS, Tone

Floats = NDArray[np.floating[Any]]
Bytes = NDArray[np.uint8]
Size = tuple[int, int]  # height, width
Window = tuple[slice, slice]

LONG_SIDE = 200
SHORT_SIDES = (140, 200)
EXTENTS = (70.0, 125.0)  # px, the longer side of an object before it is turned
MIN_VISIBLE = 0.6  # share of an object that the frame and later objects leave in view
IGNORE = 255
CLASS_NAMES: tuple[str, ...] = tuple(PARTS)


@dataclass(frozen=True)
class _Object:
    """A thing in its place: the covers of its parts from back to front, and how they are filled."""

    number: int  # class 1..20
    style: str
    covers: tuple[Bytes, ...]  # each (H, W) 0..255: how much of each pixel a part covers
    outlines: tuple[NDArray[np.int32], ...]  # each (N, 2), in sixteenths of a pixel
    tones: tuple[Tone, ...]
    colours: dict[Tone, Floats]  # RGB, 0..1
    area: float  # px, with what is hidden or outside of the frame
    cover: Bytes  # (H, W), of all parts together


def render(seed: int, number: int) -> tuple[Bytes, Bytes]:
    """Draw one image of the dataset: one to three things, mostly one, on a soft background.

    The result depends on the arguments alone.

    Args:
        seed: which dataset, 0 or more.
        number: which image of it, 0 or more.

    Returns:
        image: (H, W, 3) uint8, RGB, 0..255; the longer side is 200, the shorter 140..200, in either orientation.
        label: (H, W) uint8: 0 background, 1..20 classes (`CLASS_NAMES[label - 1]`), and 255, ignore, on a seam 1 to
            2 px wide around each object.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, number]))
    short = int(rng.integers(*SHORT_SIDES, endpoint=True))
    size = (short, LONG_SIDE) if rng.random() < 0.5 else (LONG_SIDE, short)
    objects = _layout(rng, size)
    image = _background(rng, size)
    label = np.zeros(size, np.uint8)
    for thing in objects:
        STYLES[thing.style](rng, image, thing)
        # Its class where it covers fully, inside a seam of ignore that reaches one pixel outwards.
        label[cv2.dilate(thing.cover, np.ones((3, 3), np.uint8)) > 127] = IGNORE
        label[thing.cover > 191] = thing.number
    return _photograph(rng, image), label


def _layout(rng: np.random.Generator, size: Size) -> list[_Object]:
    """Objects in drawing order, of different classes, none of them too far hidden once all are drawn."""
    count = rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1])
    placed: list[_Object] = []
    for number in 1 + rng.choice(len(CLASS_NAMES), size=count, replace=False):
        for _ in range(20):  # tries; a crowded frame may refuse them all and go without this object
            candidate = [*placed, _object(rng, size, int(number))]
            if _all_in_view(candidate):
                placed = candidate
                break
    return placed


def _all_in_view(objects: list[_Object]) -> bool:
    hidden = np.zeros_like(objects[0].cover)
    for thing in reversed(objects):
        if np.count_nonzero((thing.cover > 127) & (hidden <= 127)) < MIN_VISIBLE * thing.area:
            return False
        hidden = np.maximum(hidden, thing.cover)
    return True


def _object(rng: np.random.Generator, size: Size, number: int) -> _Object:
    parts = PARTS[CLASS_NAMES[number - 1]]
    place = _placement(rng, size)
    style = str(rng.choice(list(STYLES)))
    outlines = [np.round(16 * place(part.points)).astype(np.int32) for part in parts]
    drawn = [(_filled(size, outline), outline, part.tone) for outline, part in zip(outlines, parts)]
    cover = np.maximum.reduce([cover for cover, _, _ in drawn])
    covers, shown, tones = zip(*[row for row in drawn if row[0].any()] or drawn[:1])  # parts in the frame
    # What the frame cuts off counts too: drawn once more on a canvas that holds all of it.
    points = np.concatenate(outlines)
    low = points.min(axis=0)
    width, height = ((points.max(axis=0) - low) // 16 + 1).tolist()
    canvas = np.zeros((height, width), np.uint8)
    for outline in outlines:
        cv2.fillPoly(canvas, [outline - low], 255, shift=4)
    area = float(np.count_nonzero(canvas))
    return _Object(number, style, covers, shown, tones, _colours(rng, style), area, cover)


def _placement(rng: np.random.Generator, size: Size) -> Callable[[Floats], Floats]:
    """A map of outlines to a random spot of the image: mirrored, bent, stretched and turned."""
    scale, mirror = rng.uniform(*EXTENTS) / 2, rng.choice([-1, 1])
    turn, stretch, shear = np.deg2rad(rng.uniform(-30, 30)), rng.uniform(-0.15, 0.15), rng.uniform(-0.15, 0.15)
    bend, waves, phases = rng.uniform(0.02, 0.06), rng.uniform(2, 4, size=2), rng.uniform(0, 2 * np.pi, size=2)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = scale * rotation @ np.array([[mirror * (1 + stretch), shear], [0, 1 - stretch]])
    spot = rng.uniform(0.2, 0.8, size=2) * size[::-1]

    def place(points: Floats) -> Floats:
        bent = points + bend * np.sin(waves * points[:, ::-1] + phases)
        return bent @ matrix.T + spot

    return place


def _filled(size: Size, outline: NDArray[np.int32]) -> Bytes:
    cover = np.zeros(size, np.uint8)
    cv2.fillPoly(cover, [outline], 255, cv2.LINE_AA, shift=4)
    return cover


def _colours(rng: np.random.Generator, style: str) -> dict[Tone, Floats]:
    """RGB of the four tones: two hues of their own, one near white, one near black."""
    hue = rng.random()
    other = (hue + rng.uniform(0.25, 0.75)) % 1
    tones = {
        "main": (hue, rng.uniform(0.45, 0.95), rng.uniform(0.45, 0.95)),
        "second": (other, rng.uniform(0.4, 0.95), rng.uniform(0.4, 0.95)),
        "light": (rng.random(), rng.uniform(0, 0.2), rng.uniform(0.88, 1)),
        "dark": (rng.random(), rng.uniform(0, 0.5), rng.uniform(0.08, 0.25)),
    }
    if style == "ink":  # a drawing in one colour on paper
        tones |= {tone: (other, 0.04, value) for tone, value in (("main", 0.97), ("second", 0.8), ("light", 0.92))}
    return {tone: np.array(colorsys.hsv_to_rgb(*hsv), np.float32) for tone, hsv in tones.items()}  # type: ignore[misc]


def _background(rng: np.random.Generator, size: Size) -> Floats:
    """Colours (H, W, 3) that drift over the image, with a finer pattern, soft spots and strokes on top."""

    def noise(coarsest: int, finest: int, channels: int) -> Floats:
        cells = rng.random((*rng.integers(coarsest, finest, size=2), channels), dtype=np.float32)
        grown = np.asarray(cv2.resize(cells, size[::-1], interpolation=cv2.INTER_CUBIC), np.float32)
        return grown.reshape(*size, channels) - 0.5

    image = rng.uniform(0.3, 0.75) + 0.45 * noise(2, 5, 3) + rng.uniform(0.05, 0.2) * noise(12, 60, 1)
    for _ in range(rng.integers(3, 9)):
        layer = np.zeros(size, np.uint8)
        centre = rng.integers(0, size[::-1])
        if rng.random() < 0.5:
            axes, turn = rng.integers(5, 40, size=2), float(rng.uniform(0, 180))
            cv2.ellipse(layer, centre.tolist(), axes.tolist(), turn, 0, 360, 255, -1, cv2.LINE_AA)
        else:
            end = centre + rng.integers(-90, 90, size=2)
            cv2.line(layer, centre.tolist(), end.tolist(), 255, int(rng.integers(2, 9)), cv2.LINE_AA)
        soft = cv2.GaussianBlur(layer, (0, 0), rng.uniform(1, 5)).astype(np.uint8)
        _blend(image, soft, rng.random(3).astype(np.float32), rng.uniform(0.2, 0.6))
    return np.clip(image, 0, 1)


# ---- Styles: each paints an object into an image of floats. ----


def _flat(rng: np.random.Generator, image: Floats, thing: _Object) -> None:
    """Even colours, as on a poster."""
    for cover, tone in zip(thing.covers, thing.tones):
        _blend(image, cover, thing.colours[tone])


def _cartoon(rng: np.random.Generator, image: Floats, thing: _Object) -> None:
    """Even colours within dark outlines."""
    width = int(rng.integers(2, 4))
    for cover, outline, tone in zip(thing.covers, thing.outlines, thing.tones):
        _blend(image, cover, thing.colours[tone])
        _line(image, outline, thing, width)


def _ink(rng: np.random.Generator, image: Floats, thing: _Object) -> None:
    """Lines on paper."""
    for cover, outline, tone in zip(thing.covers, thing.outlines, thing.tones):
        _blend(image, cover, thing.colours[tone])
        _line(image, outline, thing, 2)


def _shaded(rng: np.random.Generator, image: Floats, thing: _Object) -> None:
    """Lit from one side, with a shadow on what is behind."""
    angle = rng.uniform(0, 2 * np.pi)
    shift = np.round(4 * np.array([np.cos(angle), np.sin(angle)])).astype(int)
    shadow = cv2.GaussianBlur(np.roll(thing.cover, shift, axis=(1, 0)), (0, 0), 3).astype(np.uint8)
    _blend(image, shadow, np.zeros(3, np.float32), 0.45)
    for cover, tone in zip(thing.covers, thing.tones):
        window = _window(cover)
        rows, columns = _coordinates(window)
        along = columns * np.cos(angle) + rows * np.sin(angle)
        along = (along - along.min()) / max(1.0, float(np.ptp(along)))
        light = (1.25 - 0.6 * along)[..., None]
        _blend(image, cover, np.clip(thing.colours[tone] * light, 0, 1))


def _crayon(rng: np.random.Generator, image: Floats, thing: _Object) -> None:
    """Grainy strokes through which the background shows."""
    grain = cv2.GaussianBlur(rng.random(thing.cover.shape, dtype=np.float32), (0, 0), 0.8)
    grain = np.clip((grain - 0.38) * 6, 0.35, 1)
    for cover, outline, tone in zip(thing.covers, thing.outlines, thing.tones):
        rough = (cover * grain).astype(np.uint8)
        _blend(image, rough, thing.colours[tone])
        if tone != "dark":
            edge = _filled(thing.cover.shape, outline)
            inner = cv2.erode(edge, np.ones((3, 3), np.uint8))
            _blend(image, ((edge - inner) * grain).astype(np.uint8), 0.6 * thing.colours[tone])


def _hatched(rng: np.random.Generator, image: Floats, thing: _Object) -> None:
    """Parallel lines, each part in a direction of its own."""
    for cover, outline, tone in zip(thing.covers, thing.outlines, thing.tones):
        rows, columns = _coordinates(_window(cover))
        angle, period = rng.uniform(0, np.pi), rng.uniform(4, 7)
        wave = np.sin((columns * np.cos(angle) + rows * np.sin(angle)) * (2 * np.pi / period))
        share = np.clip(0.5 + 1.2 * wave, 0, 1)[..., None]
        colour = thing.colours[tone]
        _blend(image, cover, colour * share + (0.55 * colour + 0.45) * (1 - share))
        _line(image, outline, thing, 1)


def _dotted(rng: np.random.Generator, image: Floats, thing: _Object) -> None:
    """Printed in dots of the second colour."""
    period, angle = rng.uniform(5, 8), rng.uniform(0, np.pi / 2)
    for cover, tone in zip(thing.covers, thing.tones):
        rows, columns = _coordinates(_window(cover))
        u = (columns * np.cos(angle) + rows * np.sin(angle)) * (2 * np.pi / period)
        v = (rows * np.cos(angle) - columns * np.sin(angle)) * (2 * np.pi / period)
        share = np.clip(0.5 + 1.5 * (np.cos(u) + np.cos(v) - 0.4), 0, 1)[..., None]
        colour, dots = thing.colours[tone], thing.colours["light" if tone in ("dark", "main") else "dark"]
        _blend(image, cover, colour + 0.6 * share * (dots - colour))


STYLES: dict[str, Callable[[np.random.Generator, Floats, _Object], None]] = {
    "flat": _flat,
    "cartoon": _cartoon,
    "ink": _ink,
    "shaded": _shaded,
    "crayon": _crayon,
    "hatched": _hatched,
    "dotted": _dotted,
}


def _line(image: Floats, outline: NDArray[np.int32], thing: _Object, width: int) -> None:
    """An outline in the object's darkest colour. It stays within the object, so that the label holds."""
    line = np.zeros(thing.cover.shape, np.uint8)
    cv2.polylines(line, [outline], True, 255, width, cv2.LINE_AA, shift=4)
    _blend(image, np.minimum(line, thing.cover), thing.colours["dark"])


def _blend(image: Floats, cover: Bytes, colour: Floats, opacity: float = 1.0) -> None:
    """Put a colour, (3,) or one a pixel of the cover's window, over the image where it covers."""
    window = _window(cover)  # to compute nothing outside saves most of the time
    image[window] += cover[window][..., None] * np.float32(opacity / 255) * (colour - image[window])


def _window(cover: Bytes) -> Window:
    left, top, width, height = cv2.boundingRect(cover)
    return slice(top, top + height), slice(left, left + width)


def _coordinates(window: Window) -> tuple[Floats, Floats]:
    """Rows (h, 1) and columns (w,) of a window, in pixels of the image."""
    rows, columns = (np.arange(side.start, side.stop, dtype=np.float32) for side in window)
    return rows[:, None], columns


def _photograph(rng: np.random.Generator, image: Floats) -> Bytes:
    """Contrast and brightness, a little blur and grain over all, and the rounding to bytes."""
    exposed = rng.uniform(0.85, 1.1) * (image - 0.5) + 0.5 + rng.uniform(-0.06, 0.06)
    blurred = cv2.GaussianBlur(exposed, (3, 3), rng.uniform(0.2, 0.6))
    grain = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0.005, 0.025))
    return np.asarray(np.round(255 * np.clip(blurred + grain, 0, 1)), np.uint8)
