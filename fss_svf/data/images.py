"""Reading and writing images and label maps. Every failure names its file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from fss_svf.errors import DataError
from fss_svf.files import appearing_whole

_JPEG_END = b"\xff\xd9"


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, not turned by EXIF. Raises DataError when the file is missing or cannot be decoded whole."""
    raw = _read(path)
    with damage_named(path), Image.open(BytesIO(raw)) as image:
        # OpenCV is a quarter faster and gives the same values: libjpeg-turbo is behind both. Some ways into it turn what
        # is missing of a file into grey without an error, so only a file that has its end goes there.
        if image.format == "JPEG" and image.mode in ("RGB", "L") and raw.endswith(_JPEG_END):
            decoded = _decode_jpeg(raw)
            if decoded is not None and decoded.shape == (image.height, image.width, 3):
                return decoded
        image.load()
        return np.asarray(image.convert("RGB"))


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

    Grey of 2 or 4 bits is refused: whether its numbers are classes or a shrunk form of 8-bit ones cannot be told.
    """
    # OpenCV would turn the palette into colours; Pillow keeps the indices.
    raw = _read(path)
    with damage_named(path), Image.open(BytesIO(raw)) as image:
        bits = raw[_PNG_DEPTH] if image.format == "PNG" else 8
        if image.mode not in ("P", "L") or (image.mode == "L" and bits < 8):
            raise DataError(
                f"{path}: a label must be a palette or grey PNG of class numbers (grey in 8 bits), got mode "
                f"{image.mode} in {bits} bits; write it anew"
            )
        image.load()
        return np.asarray(image)


# The first chunk of a PNG, whose place is fixed, has the bits of a sample here.
_PNG_DEPTH = 24


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run 'fss-svf prepare' to check the dataset") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and the disk") from None


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """What Pillow raises for a file it cannot decode becomes a DataError that names the file."""
    try:
        yield
    except UnidentifiedImageError:
        raise DataError(f"{path}: cannot be read (no image); the file is damaged, replace it") from None
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
