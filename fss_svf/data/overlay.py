"""A mask over its image."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

Colour = tuple[int, int, int]


def overlay(image: np.ndarray, mask: np.ndarray, colours: Sequence[Colour]) -> np.ndarray:
    """The image with a (H', W') uint8 mask, which is resized to it.

    Pixels of value n are tinted and outlined in the n-th colour, counted from 1. All others are grey and dim.
    """
    height, width = image.shape[:2]
    resized = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    # On a colourful picture a tint alone is hard to see, hence the grey.
    picture = np.repeat(image.mean(axis=2, keepdims=True) * 0.4 + 40, 3, axis=2)
    for way, colour in enumerate(colours, 1):
        inside = resized == way
        if not inside.any():
            continue
        picture = np.where(inside[..., None], 0.6 * image + 0.4 * np.array(colour), picture)
        outline = cv2.morphologyEx(inside.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        picture[outline] = colour
    return picture.astype(np.uint8)
