"""Reading and writing images and label maps. Every failure names its file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from fss_svf.data.decoding import as_rgb, load, missing, opened, orientation_of, turn, turned_size
from fss_svf.errors import DataError
from fss_svf.files import appearing_whole

_JPEG_END = b"\xff\xd9"


def read_image(path: Path, turned: bool = False) -> np.ndarray:
    """(H, W, 3) uint8 RGB, on white where it is transparent. Raises DataError for a missing, damaged or unclear file.

    turned: as a viewer shows it, by its EXIF orientation; otherwise as it is stored, but for a TIFF, which is always turned.
    """
    image, orientation = _decoded(path, turned)
    return turn(image, orientation)


def read_image_of_label(path: Path, size: Sequence[int]) -> np.ndarray:
    """read_image in the frame of its label of `size` (height, width): turned, unless only the stored frame has that size.

    Where neither has it, the image is turned, so that its size is that of the viewer.
    """
    image, orientation = _decoded(path, turned=True)
    return turn(image, 1 if frame_of(image.shape[:2], orientation, size) == "stored" else orientation)


def frame_of(
    stored: Sequence[int], orientation: int, size: Sequence[int]
) -> Literal["shown", "stored", "both", "neither"]:
    """Which frame of an image has its label's (height, width): as a viewer shows it, or as it is stored."""
    shown = turned_size(stored[0], stored[1], orientation) == tuple(size)
    if tuple(stored) == tuple(size):
        return "both" if shown else "stored"
    return "shown" if shown else "neither"


def _decoded(path: Path, turned: bool) -> tuple[np.ndarray, int]:
    """(H, W, 3) uint8 RGB as stored, and the orientation to turn it by, 1 unless `turned`."""
    raw = _read(path)
    with opened(path, raw) as image:
        # OpenCV is a quarter faster and gives the same values: libjpeg-turbo is behind both. Some ways into it turn what
        # is missing of a file into grey without an error, so only a file that has its end goes there.
        if image.format == "JPEG" and image.mode in ("RGB", "L") and raw.endswith(_JPEG_END):
            decoded = _decode_jpeg(raw)
            if decoded is not None and decoded.shape == (image.height, image.width, 3):
                return decoded, orientation_of(image) if turned else 1
        load(image)
        return as_rgb(image, path), orientation_of(image) if turned else 1


def _decode_jpeg(raw: bytes) -> np.ndarray | None:
    try:
        # Unturned, as the sizes in file headers, labels and Pillow are.
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(raw, np.uint8), flags)
    except cv2.error:
        return None  # Pillow says it better
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_label(path: Path) -> np.ndarray:
    """(H, W) uint8 class numbers from a palette or grey PNG. Raises DataError as read_image does, and for colours.

    Grey of 2 or 4 bits is refused: whether its numbers are classes or a shrunk form of 8-bit ones cannot be told. So is
    a label that EXIF turns: whether its painter saw it turned cannot be told either.
    """
    # OpenCV would turn the palette into colours; Pillow keeps the indices.
    raw = _read(path)
    with opened(path, raw) as image:
        bits = raw[_PNG_DEPTH] if image.format == "PNG" else 8
        if image.mode not in ("P", "L") or (image.mode == "L" and bits < 8):
            raise DataError(
                f"{path}: a label must be a palette or grey PNG of class numbers (grey in 8 bits), got mode "
                f"{image.mode} in {bits} bits; write it anew"
            )
        load(image)
        if orientation_of(image) != 1:
            raise DataError(f"{path}: a label that its EXIF turns; save it upright, without EXIF")
        return np.asarray(image)


# The first chunk of a PNG, whose place is fixed, has the bits of a sample here.
_PNG_DEPTH = 24


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(missing(path)) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and the disk") from None


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) from the file's header, without decoding the pixels."""
    with opened(path) as image:
        return image.height, image.width


def write_label(path: Path, label: np.ndarray) -> None:
    """Write (H, W) uint8 class numbers as a palette PNG in VOC's colours. Appears whole or not at all."""
    image = Image.fromarray(label)
    image.putpalette(PALETTE.tobytes())
    with appearing_whole(path) as unfinished:
        # zlib's Z_RLE: as small as the default for labels, at a third of its time.
        image.save(unfinished, format="PNG", compress_type=3)


def _voc_palette() -> np.ndarray:
    """VOC's colour map: bit b of a channel comes from bits 3 * (7 - b) + channel of the class number."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for channel in range(3):
        for bit in range(8):
            colours[:, channel] |= (((numbers >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


PALETTE = _voc_palette()
