"""A procedural segmentation dataset that needs no download: 20 classes, each one shape filled with one texture.

What makes it a few-shot test rather than a colour puzzle:

* a class is a *combination*; every fold of five classes holds all shapes and all textures (see `_class_parts`), so
  a novel class is an unseen pairing of parts that the base classes have shown;
* the two colours of an object are drawn without looking at its class, and the clutter sometimes borrows them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

IGNORE = 255
LONG_SIDE = 144
SHORT_SIDES = (96, 144)
OBJECT_SIZES = (34.0, 66.0)  # px across
TEXTURE_PERIODS = (8.0, 12.0)  # px; a finer texture would be lost at stride 8
MIN_VISIBLE = 0.55  # share of an object that frame and later objects must leave in view
FOLD_SIZE = 5


def _spokes(radii: Sequence[float], turn: float = 0.0) -> Floats:
    """Polygon with one vertex per radius, at even angles from `turn` (radians)."""
    angles = turn + np.arange(len(radii)) * (2 * np.pi / len(radii))
    return (np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.asarray(radii)[:, None]).astype(np.float32)


def _cross(arm: float) -> Floats:
    """Plus sign reaching to 1, its arms `2 * arm` wide."""
    quarter = np.array([[1.0, -arm], [1.0, arm], [arm, arm]])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)]).astype(np.float32)


def _soft_step(x: Floats) -> Floats:
    """0 below zero and 1 above it, with a ramp about a pixel wide that stands in for anti-aliasing."""
    return np.clip(0.5 + 2.0 * x, 0.0, 1.0)


# Outlines of about unit radius; the pointed ones reach further, so that areas differ less than they would.
SHAPES: dict[str, Floats] = {
    "disk": _spokes([0.95] * 40),
    "square": _spokes([1.2] * 4, turn=np.pi / 4),
    "triangle": _spokes([1.25] * 3, turn=-np.pi / 2),
    "star": _spokes([1.25, 0.58] * 5, turn=-np.pi / 2),
    "cross": _cross(0.4),
}

# Share of the second colour at phases (u, v), in radians, along the object's own axes.
TEXTURES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "plain": lambda u, v: 0.5 + 0.35 * np.sin((u + v) / 10),
    "striped": lambda u, v: _soft_step(np.sin(u)),
    "checked": lambda u, v: _soft_step(1.5 * np.sin(u) * np.sin(v)),
    "dotted": lambda u, v: _soft_step(np.cos(u) + np.cos(v) - 0.5),
}


def _class_parts() -> list[tuple[str, str]]:
    """(texture, shape) of classes 1..20: fold f pairs shape s with texture s + f, so each pair occurs just once."""
    shapes, textures = list(SHAPES), list(TEXTURES)
    folds = range(len(shapes) * len(textures) // FOLD_SIZE)
    return [(textures[(s + fold) % len(textures)], shape) for fold in folds for s, shape in enumerate(shapes)]


_PARTS = _class_parts()
CLASS_NAMES: tuple[str, ...] = tuple(f"{texture}_{shape}" for texture, shape in _PARTS)


@dataclass(frozen=True)
class _Object:
    """A placed object: its class (1..20), its pose (3x3, local px to image px), its coverage (H, W) and its colours."""

    number: int
    pose: Floats
    cover: Bytes
    colours: Floats

    @property
    def core(self) -> NDArray[np.bool_]:
        return self.cover > 127


def render(seed: int, number: int) -> tuple[Bytes, Bytes]:
    """Draw one image of the dataset.

    The result depends on the two arguments alone.

    Args:
        seed: names the dataset, 0 or more.
        number: which image of it, 0 or more.

    Returns:
        image: (H, W, 3) uint8, RGB; the longer side is 144, the shorter one 96..144, in either orientation.
        label: (H, W) uint8: 0 background, 1..20 classes (`CLASS_NAMES[label - 1]`), 255 ignore, a seam 1 to 2 px
            wide around each object.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, number]))
    size = _frame(rng)
    objects = _layout(rng, size)
    image = _background(rng, size, [item.colours for item in objects])
    label = np.zeros(size, np.uint8)
    for item in objects:
        texture = _PARTS[item.number - 1][0]
        _blend(image, item.cover / np.float32(255), _fill(rng, size, item.pose, texture, item.colours))
        _mark(label, item)
    return _photograph(rng, image), label


def _frame(rng: np.random.Generator) -> tuple[int, int]:
    short = int(rng.integers(*SHORT_SIDES, endpoint=True))
    return (short, LONG_SIDE) if rng.random() < 0.5 else (LONG_SIDE, short)


def _layout(rng: np.random.Generator, size: tuple[int, int]) -> list[_Object]:
    """Two to four objects in drawing order, mostly of different classes, each still well in view at the end."""
    numbers = 1 + rng.choice(len(_PARTS), size=rng.integers(2, 5), replace=False)
    if rng.random() < 0.2:
        numbers[1] = numbers[0]
    placed: list[_Object] = []
    for number in numbers:
        for _ in range(20):  # a crowded frame may refuse every try: it then has an object less
            candidate, outline = _place(rng, size, int(number))
            if _all_in_view([*placed, candidate], cv2.contourArea(outline)):
                placed.append(candidate)
                break
    return placed
