"""Reading and writing images and label maps. Every failure names its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fss_svf.errors import DataError


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Raises DataError when the file is missing or cannot be decoded whole."""
    return np.asarray(_decode(path, "RGB"))


def read_label(path: Path) -> np.ndarray:
    """(H, W) uint8 class numbers from a palette or grey PNG. Raises DataError as read_image does, and for colours."""
    # OpenCV would turn the palette into colours; Pillow keeps the indices.
    return np.asarray(_decode(path, None))


def _decode(path: Path, mode: str | None) -> Image.Image:
    try:
        with Image.open(path) as image:
            if mode is None and image.mode not in ("P", "L"):
                raise DataError(
                    f"{path}: a label must be a palette or grey PNG of class numbers, got mode {image.mode}"
                )
            image.load()
            return image if mode is None else image.convert(mode)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run 'fss-svf prepare' to check the dataset") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read ({error}); the file is damaged, replace it") from None


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) from the file's header, without decoding the pixels."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read ({error}); the file is damaged or not an image, replace it") from None


def write_label(path: Path, label: np.ndarray) -> None:
    """Write (H, W) uint8 class numbers as a palette PNG in VOC's colours. Appears whole or not at all."""
    image = Image.fromarray(label, mode="L")
    image.putpalette(PALETTE.tobytes())
    partial = path.with_suffix(".partial")
    image.save(partial, format="PNG")
    partial.replace(path)


def _voc_palette() -> np.ndarray:
    """VOC's colour map: bit b of a channel comes from bits 3 * (7 - b) + channel of the class number."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for channel in range(3):
        for bit in range(8):
            colours[:, channel] |= (((numbers >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


PALETTE = _voc_palette()
