"""Pictures of episodes: support | query | truth | prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_CELL, _GAP, _HEAD = 240, 6, 22
_SUPPORT, _TRUTH, _PREDICTION = (66, 133, 244), (52, 168, 83), (234, 67, 53)


@dataclass(frozen=True)
class EpisodePicture:
    """One row. Images (H, W, 3) uint8 RGB; masks (H', W') bool of the same proportions, or of the padded square."""

    title: str
    support_image: np.ndarray
    support_mask: np.ndarray
    query_image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


def draw_episodes(episodes: Sequence[EpisodePicture]) -> np.ndarray:
    """A grid with one row an episode, (H, W, 3) uint8 RGB."""
    titles = ("support", "query", "truth", "prediction")
    width = 4 * _CELL + 5 * _GAP
    sheet = Image.new("RGB", (width, _HEAD + len(episodes) * (_CELL + _HEAD + _GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, title in enumerate(titles):
        draw.text((_GAP + column * (_CELL + _GAP), 3), title, fill="black", font=font)
    for row, e in enumerate(episodes):
        top = _HEAD + row * (_CELL + _HEAD + _GAP)
        draw.text((_GAP, top + 3), e.title, fill="black", font=font)
        cells = (
            overlay(e.support_image, e.support_mask, _SUPPORT),
            e.query_image,
            overlay(e.query_image, e.truth, _TRUTH),
            overlay(e.query_image, e.prediction, _PREDICTION),
        )
        for column, cell in enumerate(cells):
            image = Image.fromarray(cell)
            # Small images are enlarged too, or a toy episode would be a stamp.
            scale = _CELL / max(image.size)
            image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
            sheet.paste(image, (_GAP + column * (_CELL + _GAP), top + _HEAD))
    return np.asarray(sheet)


def overlay(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The image with its (H', W') bool mask, resized to it, shown: tinted and outlined inside, grey and dim outside."""
    height, width = image.shape[:2]
    inside = (
        np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.NEAREST)) > 0
    )
    # Grey surroundings: a tint alone is lost on a colourful picture.
    grey = np.repeat(image.mean(axis=2, keepdims=True) * 0.4 + 40, 3, axis=2)
    shown = np.where(inside[..., None], 0.6 * image + 0.4 * np.array(colour), grey)
    outline = cv2.morphologyEx(inside.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    shown[outline] = colour
    return shown.astype(np.uint8)


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB as an image file."""
    Image.fromarray(picture).save(path)
