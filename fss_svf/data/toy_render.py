"""A procedural segmentation dataset that needs no download: 20 classes, each one shape filled with one texture.

What makes it a few-shot test rather than a colour puzzle:

* a class is a *combination*, and every fold of five classes holds all shapes and all textures (`_class_parts`), so
  that a novel class is an unseen pairing of parts that the base classes have shown;
* the two colours of an object are drawn without looking at its class, and the clutter at times borrows them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating[Any]]
Bytes = NDArray[np.uint8]
Size = tuple[int, int]  # height, width

LONG_SIDE = 144
SHORT_SIDES = (96, 144)
RADII = (16.0, 28.0)  # px, scale of the outlines below: objects are about 30 to 65 px across
PERIODS = (8.0, 12.0)  # px; a finer texture would be lost to a network of stride 8
MIN_VISIBLE = 0.55  # share of an object that the frame and later objects leave in view
FOLD_SIZE = 5
IGNORE = 255


def _spokes(radii: ArrayLike, turn: float = 0.0) -> Floats:
    """Polygon (N, 2) with one vertex per radius, at even angles from `turn` (radians)."""
    lengths = np.asarray(radii, np.float32)
    angles = turn + np.arange(len(lengths)) * (2 * np.pi / len(lengths))
    return np.stack([lengths * np.cos(angles), lengths * np.sin(angles)], axis=1)


def _plus(reach: float, arm: float) -> Floats:
    """Polygon (12, 2) of a plus sign; a quarter turn, three vertices on, takes its x to its y."""
    x = np.array([reach, reach, arm, arm, -arm, -arm, -reach, -reach, -arm, -arm, arm, arm])
    return np.stack([x, np.roll(x, 3)], axis=1)


def _soft_step(x: Floats) -> Floats:
    """0 below zero, 1 above, with a ramp about a pixel wide in between that stands in for anti-aliasing."""
    step: Floats = np.clip(0.5 + 1.5 * x, 0.0, 1.0)
    return step


# Outlines of about unit radius; the pointed ones reach further, to keep areas within a factor of two.
SHAPES: dict[str, Floats] = {
    "disk": _spokes([0.95] * 40),
    "square": _spokes([1.2] * 4, turn=np.pi / 4),
    "triangle": _spokes([1.25] * 3, turn=-np.pi / 2),
    "star": _spokes([1.25, 0.58] * 5, turn=-np.pi / 2),
    "cross": _plus(1.1, 0.4),
}

# Share of the second colour at phases (u, v), in radians, along an object's own axes. Most average one half, and the
# colours come in either order, so that an object's mean colour tells little about its texture.
TEXTURES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "plain": lambda u, v: 0.5 + 0.4 * np.sin((u + v) / 12),
    "striped": lambda u, v: _soft_step(np.sin(u)),
    "checked": lambda u, v: _soft_step(2 * np.sin(u) * np.sin(v)),
    "dotted": lambda u, v: _soft_step(np.cos(u) + np.cos(v) - 0.6),
}


def _class_parts() -> list[tuple[str, str]]:
    """(texture, shape) of classes 1..20: fold f gives shape s the texture s + f (mod 4), so every pair occurs once."""
    shapes, textures = list(SHAPES), list(TEXTURES)
    folds = range(len(shapes) * len(textures) // FOLD_SIZE)
    return [(textures[(s + fold) % len(textures)], shape) for fold in folds for s, shape in enumerate(shapes)]


_PARTS = _class_parts()
CLASS_NAMES: tuple[str, ...] = tuple(f"{texture}_{shape}" for texture, shape in _PARTS)


@dataclass(frozen=True)
class _Piece:
    """Something to paint: an object, or a bit of clutter."""

    pose: Floats  # (3, 3) homography from the piece's own pixels to the image's
    cover: Bytes  # (H, W): 0..255, how much of each pixel it covers
    texture: str
    colours: Floats  # (2, 3) RGB, 0..1
    opacity: float = 1.0
    number: int = 0  # class 1..20, or 0 for clutter
    area: float = 0.0  # px, with the hidden and the cropped part; not kept for clutter


def render(seed: int, number: int) -> tuple[Bytes, Bytes]:
    """Draw one image of the dataset: two to four objects on clutter. The result depends on the arguments alone.

    Args:
        seed: which dataset, 0 or more.
        number: which image of it, 0 or more.

    Returns:
        image: (H, W, 3) uint8, RGB, 0..255; the longer side is 144, the shorter 96..144, in either orientation.
        label: (H, W) uint8: 0 background, 1..20 classes (`CLASS_NAMES[label - 1]`), and 255, ignore, on a seam 1 to
            2 px wide around each object.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, number]))
    short = int(rng.integers(*SHORT_SIDES, endpoint=True))
    size = (short, LONG_SIDE) if rng.random() < 0.5 else (LONG_SIDE, short)
    objects = _layout(rng, size)
    image = _background(rng, size)
    label = np.zeros(size, np.uint8)
    for piece in _clutter(rng, size, borrow=[piece.colours for piece in objects]) + objects:
        _paint(rng, image, piece)
    for piece in objects:
        _mark(label, piece)
    return _photograph(rng, image), label


def _layout(rng: np.random.Generator, size: Size) -> list[_Piece]:
    """Objects in drawing order, mostly of different classes, none of them too far hidden once all are drawn."""
    numbers = 1 + rng.choice(len(CLASS_NAMES), size=rng.integers(2, 4, endpoint=True), replace=False)
    if rng.random() < 0.2:
        numbers[1] = numbers[0]
    placed: list[_Piece] = []
    for number in numbers:
        for _ in range(20):  # tries; a crowded frame may refuse them all and go without this object
            candidate = [*placed, _object(rng, size, int(number))]
            if _all_in_view(candidate):
                placed = candidate
                break
    return placed


def _object(rng: np.random.Generator, size: Size, number: int) -> _Piece:
    texture, shape = _PARTS[number - 1]
    pose = _pose(rng, size)
    outline = _project(SHAPES[shape] * rng.uniform(*RADII), pose)
    area = cv2.contourArea(outline) / 16**2
    return _Piece(pose, _filled(size, outline), texture, _colours(rng), number=number, area=area)


def _all_in_view(objects: list[_Piece]) -> bool:
    hidden = np.zeros_like(objects[0].cover)
    for piece in reversed(objects):
        if np.count_nonzero((piece.cover > 127) & (hidden <= 127)) < MIN_VISIBLE * piece.area:
            return False
        hidden = np.maximum(hidden, piece.cover)
    return True


def _pose(rng: np.random.Generator, size: Size) -> Floats:
    """Homography to a random spot of the image: any rotation, some stretch and shear, slight perspective."""
    turn, stretch, shear = rng.uniform(-np.pi, np.pi), rng.uniform(-0.12, 0.12), rng.uniform(-0.15, 0.15)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    pose, to_spot = np.eye(3), np.eye(3)
    pose[:2, :2] = rotation @ [[1 + stretch, shear], [0, 1 - stretch]]
    pose[2, :2] = rng.uniform(-0.003, 0.003, size=2)
    to_spot[:2, 2] = rng.uniform(0.1, 0.9, size=2) * size[::-1]
    return (to_spot @ pose).astype(np.float32)


def _project(points: Floats, pose: Floats) -> NDArray[np.int32]:
    """Points (N, 2) through a homography, in sixteenths of a pixel, as OpenCV takes them with shift=4."""
    lifted = points @ pose[:, :2].T + pose[:, 2]
    return np.asarray(np.round(16 * lifted[:, :2] / lifted[:, 2:]), np.int32)


def _filled(size: Size, outline: NDArray[np.int32]) -> Bytes:
    cover = np.zeros(size, np.uint8)
    cv2.fillPoly(cover, [outline], 255, cv2.LINE_AA, shift=4)
    return cover


def _colours(rng: np.random.Generator) -> Floats:
    """Two RGB colours (2, 3), any at all, but at least 0.3 apart in every channel."""
    first = rng.random(3)
    return np.stack([first, (first + rng.uniform(0.3, 0.7, size=3)) % 1]).astype(np.float32)


def _background(rng: np.random.Generator, size: Size) -> Floats:
    """Colours (H, W, 3) that drift over the image, about 0.15..0.85, and a finer pattern on top."""

    def noise(coarsest: int, finest: int) -> Floats:
        cells = rng.random((*rng.integers(coarsest, finest, size=2), 3), dtype=np.float32)
        return np.asarray(cv2.resize(cells, size[::-1], interpolation=cv2.INTER_CUBIC), np.float32) - 0.5

    return 0.5 + 0.7 * noise(2, 6) + 0.25 * noise(8, 48)


def _clutter(rng: np.random.Generator, size: Size, borrow: list[Floats]) -> list[_Piece]:
    """Six to ten faint distractors, some in the colours of an object."""
    palette = borrow + [_colours(rng) for _ in borrow]
    return [_distractor(rng, size, palette[rng.integers(len(palette))]) for _ in range(rng.integers(6, 11))]


def _distractor(rng: np.random.Generator, size: Size, colours: Floats) -> _Piece:
    """Part of what makes an object, never the whole: a texture without a shape, or a shape left unfinished."""
    pose, texture = _pose(rng, size), "plain"
    kind = rng.choice(["line", "unfinished", "blob", "patch"])
    if kind in ("blob", "patch"):
        lump = _filled(size, _project(_spokes(rng.uniform(8, 32, size=9)), pose))
        cover = np.asarray(cv2.blur(lump, (9, 9)), np.uint8)
        texture = "plain" if kind == "blob" else list(TEXTURES)[rng.integers(1, len(TEXTURES))]
    else:
        shape = SHAPES[rng.choice(list(SHAPES))] * rng.uniform(*RADII)
        path = np.array([[-80, 0], [rng.uniform(0, 80), 0]]) if kind == "line" else shape[: len(shape) * 2 // 3 + 1]
        cover = np.zeros(size, np.uint8)
        cv2.polylines(cover, [_project(path, pose)], False, 255, int(rng.integers(1, 5)), cv2.LINE_AA, shift=4)
    return _Piece(pose, cover, texture, colours, opacity=rng.uniform(0.25, 0.7))


def _paint(rng: np.random.Generator, image: Floats, piece: _Piece) -> None:
    """Blend a piece into the image; its texture turns and tilts with its pose."""
    left, top, width, height = cv2.boundingRect(piece.cover)  # to compute nothing outside saves most of the time
    window = np.s_[top : top + height, left : left + width]
    rows = np.arange(top, top + height, dtype=np.float32)[:, None]
    columns = np.arange(left, left + width, dtype=np.float32)
    x, y, depth = (a * columns + b * rows + c for a, b, c in np.linalg.inv(piece.pose).tolist())
    waves = 2 * np.pi / rng.uniform(*PERIODS) / depth
    u, v = (along * waves + rng.uniform(0, 2 * np.pi) for along in (x, y))
    first, second = piece.colours
    fill = first + TEXTURES[piece.texture](u, v)[..., None] * (second - first)
    image[window] += piece.cover[window][..., None] * np.float32(piece.opacity / 255) * (fill - image[window])


def _mark(label: Bytes, piece: _Piece) -> None:
    """Write an object's class where it covers fully, inside a seam of ignore that reaches one pixel outwards."""
    label[cv2.dilate(piece.cover, np.ones((3, 3), np.uint8)) > 127] = IGNORE
    label[piece.cover > 191] = piece.number


def _photograph(rng: np.random.Generator, image: Floats) -> Bytes:
    """Contrast and brightness, blur and grain over all, and the rounding to bytes."""
    exposed = rng.uniform(0.8, 1.15) * (image - 0.5) + 0.5 + rng.uniform(-0.1, 0.1)
    blurred = cv2.GaussianBlur(exposed, (3, 3), rng.uniform(0.2, 0.8))
    grain = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0.01, 0.04))
    return np.asarray(np.round(255 * np.clip(blurred + grain, 0, 1)), np.uint8)
