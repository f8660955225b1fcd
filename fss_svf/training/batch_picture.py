"""A batch as it is trained on, augmented, to look at: images with their masks over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from fss_svf.data.images import PALETTE
from fss_svf.data.loading import LabelBatch
from fss_svf.data.overlay import overlay
from fss_svf.episode import IGNORE, Episode

_CELL, _GAP = 240, 6
# Of a batch; more is not looked at.
_MOST_ROWS, _MOST_SUPPORTS = 8, 5
_IGNORED = (255, 214, 0)


def draw_episode_batch(batch: Episode) -> np.ndarray:
    """A row an episode: its supports with their masks, its query without and with it, (H, W, 3) uint8 RGB.

    Each class has a colour; ignored pixels are yellow.

    batch: uint8 images, as a loader gives it. At most 8 episodes, and 5 supports over all ways.
    """
    assert batch.query_mask is not None
    ways = batch.way
    supports, masks = batch.support_images.flatten(1, -4), batch.support_masks.flatten(1, -3)
    rows = []
    for n in range(min(len(supports), _MOST_ROWS)):
        # A class has the same colour in every image.
        of_way = [PALETTE[way : way + 1].tolist() for way in range(1, ways + 1) for _ in range(batch.shot)]
        pairs = list(zip(supports[n], masks[n], of_way))[:_MOST_SUPPORTS]
        query = batch.query_image[n]
        with_mask = _with_mask(query, batch.query_mask[n], PALETTE[1 : ways + 1].tolist())
        rows.append([*(_with_mask(*pair) for pair in pairs), _plain(query), with_mask])
    return _sheet(rows)


def draw_label_batch(batch: LabelBatch) -> np.ndarray:
    """A row an image: without its label and with it, (H, W, 3) uint8 RGB. Ignored pixels are yellow. At most 8 images."""
    colours = PALETTE[1:IGNORE].tolist()
    pairs = zip(batch.images[:_MOST_ROWS], batch.labels)
    return _sheet([[_plain(image), _with_mask(image, label, colours)] for image, label in pairs])


def _plain(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def _with_mask(image: Tensor, mask: Tensor, colours: Sequence[Sequence[int]]) -> np.ndarray:
    """(3, H, W) uint8 with a mask (H, W) over it, as (H, W, 3)."""
    values = mask.numpy().astype(np.int64)
    # overlay counts colours from 1: the last one is of what is ignored.
    values[values == IGNORE] = len(colours) + 1
    return overlay(_plain(image), values.astype(np.uint8), [*((r, g, b) for r, g, b in colours), _IGNORED])


def _sheet(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Pictures in a grid; each row has the same number, all of one size."""
    height, width = rows[0][0].shape[:2]
    scale = _CELL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    sheet = Image.new(
        "RGB", tuple(_GAP + n * (side + _GAP) for n, side in zip((len(rows[0]), len(rows)), size)), "white"
    )
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            place = (_GAP + x * (size[0] + _GAP), _GAP + y * (size[1] + _GAP))
            sheet.paste(Image.fromarray(cell).resize(size), place)
    return np.asarray(sheet)
