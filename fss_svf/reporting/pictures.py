"""Pictures of episodes: support | query | truth | prediction, with one support of each way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fss_svf.data.images import PALETTE
from fss_svf.data.overlay import overlay
from fss_svf.episode import IGNORE

_CELL, _GAP, _HEAD = 240, 6, 22
_SUPPORT, _TRUTH, _PREDICTION = (66, 133, 244), (52, 168, 83), (234, 67, 53)


@dataclass(frozen=True)
class EpisodePicture:
    """One row of a picture: an episode.

    Images (H, W, 3) uint8 RGB; masks (H', W') uint8 of the same proportions, or of the padded square.

    number             number of the episode
    classes            names of the classes of N ways
    iou                IoU of the foreground, a fraction
    supports           one (image, mask) of each way; the mask is 1 on the class; none where there are too many ways to show
    truth, prediction  masks: n on the class of way n, from 1 to N; other values are no class
    """

    number: int
    classes: tuple[str, ...]
    iou: float
    supports: Sequence[tuple[np.ndarray, np.ndarray]]
    query_image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray

    @property
    def title(self) -> str:
        return f"{', '.join(self.classes)}  IoU {100 * self.iou:.0f}"


def draw_episodes(episodes: Sequence[EpisodePicture]) -> np.ndarray:
    """A grid with a row for each episode, (H, W, 3) uint8 RGB. All episodes have the same number of ways."""
    ways = len(episodes[0].supports)
    titles = (*(["support"] if ways == 1 else [f"way {n}" for n in range(1, ways + 1)]), "query", "truth", "prediction")
    return _sheet(titles, [({0: e.title}, _cells(e, _CELL)) for e in episodes])


def draw_exchanged(
    right: Sequence[EpisodePicture], wrong: Sequence[EpisodePicture], none: Sequence[EpisodePicture]
) -> np.ndarray:
    """A grid of one-way episodes with the right supports, with wrong ones, and with none marked; a row for each query.

    (H, W, 3) uint8 RGB. Each prediction is held against the same truth.
    """
    titles = ("truth", "support", "prediction", "wrong support", "prediction", "nothing marked", "prediction")
    rows = []
    for of_right, of_wrong, of_none in zip(right, wrong, none, strict=True):
        cells = {kind: _cells(e, _CELL) for kind, e in (("right", of_right), ("wrong", of_wrong), ("none", of_none))}
        pairs = [cell for of_kind in cells.values() for cell in (of_kind[0], of_kind[-1])]
        ious = {2: of_right, 4: of_wrong, 6: of_none}
        texts = {0: ", ".join(of_right.classes), **{n: f"IoU {100 * e.iou:.0f}" for n, e in ious.items()}}
        rows.append((texts, [cells["right"][-2], *pairs]))
    return _sheet(titles, rows)


def _sheet(titles: Sequence[str], rows: Sequence[tuple[Mapping[int, str], Sequence[Image.Image]]]) -> np.ndarray:
    """Rows of images under titles; above an image its text, by column."""
    width = len(titles) * (_CELL + _GAP) + _GAP
    sheet = Image.new("RGB", (width, _HEAD + len(rows) * (_CELL + _HEAD + _GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, title in enumerate(titles):
        draw.text((_GAP + column * (_CELL + _GAP), 3), title, fill="black", font=font)
    for row, (texts, cells) in enumerate(rows):
        top = _HEAD + row * (_CELL + _HEAD + _GAP)
        for column, text in texts.items():
            draw.text((_GAP + column * (_CELL + _GAP), top + 3), text, fill="black", font=font)
        for column, cell in enumerate(cells):
            sheet.paste(cell, (_GAP + column * (_CELL + _GAP), top + _HEAD))
    return np.asarray(sheet)


def draw_strip(episode: EpisodePicture, cell: int) -> np.ndarray:
    """One episode without text, its images `cell` pixels long, on grey, (H, W, 3) uint8 RGB."""
    cells = _cells(episode, cell)
    strip = Image.new("RGB", (len(cells) * (cell + _GAP) - _GAP, max(c.height for c in cells)), (128, 128, 128))
    for column, image in enumerate(cells):
        strip.paste(image, (column * (cell + _GAP), 0))
    return np.asarray(strip)


def _cells(episode: EpisodePicture, size: int) -> list[Image.Image]:
    """Images of supports, query, truth and prediction; the longer side of each is `size` pixels."""
    e, ways = episode, len(episode.supports)
    of_supports, of_truth, of_prediction = [_SUPPORT], [_TRUTH], [_PREDICTION]
    if ways != 1:
        # A class has the same colour in every image.
        of_supports = of_truth = of_prediction = PALETTE[1 : ways + 1 if ways else IGNORE].tolist()
    cells = [
        *(overlay(image, mask, [colour]) for (image, mask), colour in zip(e.supports, of_supports)),
        e.query_image,
        overlay(e.query_image, e.truth, of_truth),
        overlay(e.query_image, e.prediction, of_prediction),
    ]
    resized = []
    for image in map(Image.fromarray, cells):
        # Small images, such as toy ones, are enlarged too.
        scale = size / max(image.size)
        resized.append(image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale)))))
    return resized


def save_picture(path: Path, picture: np.ndarray, quality: int = 90) -> None:
    """Write (H, W, 3) uint8 RGB as an image file. quality: that of a JPEG, up to 100."""
    Image.fromarray(picture).save(path, quality=quality)
