"""Reads and writes images and labels. Every error names its file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from fss_svf.data.decoding import as_rgb, load, missing, opened, orientation_of, turn, turned_size
from fss_svf.errors import DataError
from fss_svf.files import atomic_write

_JPEG_END = b"\xff\xd9"


def read_image(path: Path, turned: bool = False) -> np.ndarray:
    """(H, W, 3) uint8 RGB, transparent pixels on white. Raises DataError for a missing, damaged or ambiguous file.

    turned: apply the EXIF orientation, as viewers do. Otherwise the image is as stored, except a TIFF, which is turned.
    """
    image, orientation = _decoded(path, turned)
    return turn(image, orientation)


def read_image_of_label(path: Path, size: Sequence[int]) -> np.ndarray:
    """read_image to match a label of `size` (height, width): turned, unless only the stored image has that size.

    If neither has it, the image is turned, so that its size is the one in a viewer.
    """
    image, orientation = _decoded(path, turned=True)
    return turn(image, 1 if frame_of(image.shape[:2], orientation, size) == "stored" else orientation)


def frame_of(
    stored: Sequence[int], orientation: int, size: Sequence[int]
) -> Literal["turned", "stored", "both", "neither"]:
    """Whether the turned or the stored image has its label's (height, width)."""
    turned = turned_size(stored[0], stored[1], orientation) == tuple(size)
    if tuple(stored) == tuple(size):
        return "both" if turned else "stored"
    return "turned" if turned else "neither"


def _decoded(path: Path, turned: bool) -> tuple[np.ndarray, int]:
    """(H, W, 3) uint8 RGB as stored, and the orientation to turn it by, 1 unless `turned`."""
    raw = _read(path)
    with opened(path, raw) as image:
        # OpenCV is a quarter faster and gives the same values: both use libjpeg-turbo. It may fill missing parts of a
        # file with grey without an error, so only complete files are decoded with it.
        if image.format == "JPEG" and image.mode in ("RGB", "L") and raw.endswith(_JPEG_END):
            decoded = _decode_jpeg(raw)
            if decoded is not None and decoded.shape == (image.height, image.width, 3):
                return decoded, orientation_of(image) if turned else 1
        load(image)
        return as_rgb(image, path), orientation_of(image) if turned else 1


def _decode_jpeg(raw: bytes) -> np.ndarray | None:
    try:
        # Not turned, like sizes in file headers, labels and Pillow.
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(raw, np.uint8), flags)
    except cv2.error:
        return None  # Pillow's error is clearer
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_label(path: Path, wide: bool = False) -> np.ndarray:
    """(H, W) uint8 class numbers from a palette or grey PNG. Raises DataError as read_image does, and for colours.

    wide: (H, W) uint16 from a grey PNG of 16 bits, as of a dataset with more than 254 classes (label_values).

    Grey of 2 or 4 bits is refused: its numbers may be classes, or 8-bit ones scaled down. A label with an EXIF
    orientation is refused too: it may have been drawn turned or not.
    """
    # OpenCV would convert the palette to colours; Pillow keeps the indices.
    raw = _read(path)
    with opened(path, raw) as image:
        bits = raw[_PNG_DEPTH] if image.format == "PNG" else 8
        if wide and not (bits == 16 and image.mode.startswith("I")):
            raise DataError(
                f"{path}: a label of a dataset with more than 254 classes must be a grey PNG of 16 bits, got mode "
                f"{image.mode} in {bits} bits; save it in that form, with 65535 where it is ignored"
            )
        if not wide and (image.mode not in ("P", "L") or (image.mode == "L" and bits < 8)):
            raise DataError(
                f"{path}: a label must be a palette or grey PNG of class numbers (grey in 8 bits), got mode "
                f"{image.mode} in {bits} bits; save it in that form"
            )
        load(image)
        if orientation_of(image) != 1:
            raise DataError(f"{path}: a label with an EXIF orientation; save it upright, without EXIF")
        return np.asarray(image, np.uint16 if wide else None)


# Position of the bit depth in a PNG: its first chunk has a fixed position.
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
    """Write (H, W) uint8 class numbers as a palette PNG in VOC's colours, or uint16 ones as a grey PNG, atomically."""
    image = Image.fromarray(label)
    if label.dtype == np.uint8:
        image.putpalette(PALETTE.tobytes())
    with atomic_write(path) as unfinished:
        # zlib's Z_RLE: for labels as small as the default, in a third of the time.
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
