"""Pictures of episodes: support | query | truth | prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_CELL, _GAP, _HEAD = 240, 6, 22
_SUPPORT, _TRUTH, _PREDICTION, _IGNORED = (66, 133, 244), (52, 168, 83), (234, 67, 53), (255, 255, 255)


@dataclass(frozen=True)
class EpisodePicture:
    """One row. Images (H, W, 3) uint8 RGB; masks (H', W') bool of the same proportions, or of the padded square."""

    title: str
    support_image: np.ndarray
    support_mask: np.ndarray
    query_image: np.ndarray
    truth: np.ndarray
    ignored: np.ndarray
    prediction: np.ndarray


def draw_episodes(episodes: Sequence[EpisodePicture]) -> np.ndarray:
    """A grid with one row an episode, (H, W, 3) uint8 RGB. Ignored pixels are white in the truth."""
    titles = ("support", "query", "truth", "prediction")
    width = 4 * _CELL + 5 * _GAP
    sheet = Image.new("RGB", (width, _HEAD + len(episodes) * (_CELL + _HEAD + _GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, title in enumerate(titles):
        draw.text((_GAP + column * (_CELL + _GAP), 3), title, fill="black", font=font)
    for row, e in enumerate(episodes):
        top = _HEAD + row * (_CELL + _HEAD + _GAP)
        draw.text((_GAP, top + 3), e.title, fill="black", font=font)
        truth = overlay(overlay(e.query_image, e.truth, _TRUTH), e.ignored, _IGNORED)
        cells = (
            overlay(e.support_image, e.support_mask, _SUPPORT),
            e.query_image,
            truth,
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
    """The image with `colour` at 55% where the (H', W') bool mask, resized to the image, is set."""
    if mask.shape != image.shape[:2]:
        size = (image.shape[1], image.shape[0])
        mask = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0
    blended = image.copy()
    blended[mask] = (0.45 * image[mask] + 0.55 * np.array(colour)).astype(np.uint8)
    return blended


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB as an image file."""
    Image.fromarray(picture).save(path)
