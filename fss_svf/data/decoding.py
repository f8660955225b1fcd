"""Decodes an image file of any kind to 8-bit RGB, and applies its EXIF orientation."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fss_svf.errors import DataError, FssError

MOST_PIXELS = 500_000_000

_ORIENTATION = 0x0112
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC = 256, 257, 258, 262  # of a TIFF
# 16 bits without a value above this may be a picture of 12 bits or fewer. Read as 16 bits it would be nearly black.
_DIM = 4095


@contextmanager
def opened(path: Path, raw: bytes | None = None) -> Iterator[Image.Image]:
    """Open the image file at `path` with Pillow. raw: its bytes, if they are already read.

    An error while opening it or in the block becomes a DataError that names the file.
    """
    try:
        with _open(path if raw is None else BytesIO(raw)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(
                    f"{path}: cannot be read (an image of {image.width:,} x {image.height:,} pixels, more than "
                    f"{MOST_PIXELS // 10**6} million); shrink or cut it; if it should be smaller, replace it"
                )
            yield image
    except FssError:
        raise
    except FileNotFoundError:
        raise DataError(missing(path)) from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: cannot be read ({_no_image(path)}") from None
    except MemoryError:
        raise DataError(f"{path}: cannot be read (not enough memory for it); shrink it") from None
    except Exception as error:  # decoders raise anything for damaged bytes
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read ({why}); the file is damaged, replace it") from None


def missing(path: Path) -> str:
    """The message for a missing file at `path`, with the way out."""
    if path.is_symlink():
        return (
            f"{path}: a link to {os.readlink(path)}, which is missing; fetch the files behind the links "
            "(git annex get, dvc pull), or copy them"
        )
    return f"{path}: no such file; run 'fss-svf prepare' to check the dataset"


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 to 8; 1 if it has none, or if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of other damaged entries
            value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises anything for damaged EXIF; viewers then show the image as stored
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def stored_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) as stored, of an opened image that is not loaded. For a TIFF, Pillow returns the turned size."""
    tags = getattr(image, "tag_v2", None)
    return (image.height, image.width) if tags is None else (tags[_HEIGHT], tags[_WIDTH])


def load(image: Image.Image) -> None:
    """Decode the pixels of an opened image. A TIFF is turned by this, and then has no orientation."""
    if image.format == "TIFF" and image.width * image.height > (Image.MAX_IMAGE_PIXELS or MOST_PIXELS):
        with _limit_lifted():  # a TIFF's size is checked again
            image.load()
    image.load()


def turned_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """(height, width) of an image of this size after it is turned."""
    return (width, height) if orientation >= 5 else (height, width)


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an array (H, W, ...) by an EXIF orientation, 1 to 8, as viewers do."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    down = orientation in (3, 4, 7, 8)
    right = orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(image[:: -1 if down else 1, :: -1 if right else 1])


def as_rgb(image: Image.Image, path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an opened image as stored, not turned. Transparent pixels are put on white.

    Grey in 16 bits is divided by 256; floats are read from 0 (black) to 1 (white). Raises DataError for ambiguous values.
    """
    if image.mode in ("LAB", "HSV"):
        raise DataError(f"{path}: colours in {image.mode}; save it as RGB")
    if image.mode == "F" or image.mode.startswith("I"):
        grey = _deep_grey(image, path)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    return np.asarray(image.convert("RGB"))


def _deep_grey(image: Image.Image, path: Path) -> np.ndarray:
    """(H, W) uint8 of grey in 16 bits or floats."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PHOTOMETRIC) == 0:
        raise DataError(f"{path}: grey in which 0 is white; save it with 0 as black, or in 8 bits")
    values = np.asarray(image)
    if image.mode == "F":
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1 + 1e-6):  # true for NaN too
            raise DataError(
                f"{path}: float values from {low:g} to {high:g}; expected values from 0 (black) to 1 (white); scale "
                "them, or save it in 8 bits"
            )
        return np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    if image.mode == "I" and image.format != "PNG":  # older versions of Pillow open a PNG of 16 bits in this mode
        raise DataError(f"{path}: grey in 32 bits or with a sign, which has no defined white; save it in 8 or 16 bits")
    bits = 12 if tags.get(_BITS) == (12,) else 16
    high = values.max()
    if bits == 16 and 0 < high <= _DIM:
        raise DataError(
            f"{path}: grey in 16 bits without a value above {high:,}: nearly black, or a picture of fewer bits; save it in "
            "8 bits, as it should look"
        )
    grey = (values.clip(0, 2**bits - 1) >> (bits - 8)).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    return grey


# Pillow has one limit of image size for the process. It is lifted while a file is opened here; the size is then compared
# with MOST_PIXELS. A fork waits for the lock, since the child could never get it otherwise.
_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@contextmanager
def _limit_lifted() -> Iterator[None]:
    with _lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _open(source: Path | BytesIO) -> Image.Image:
    with _limit_lifted(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged EXIF
        return Image.open(source)


def _no_image(path: Path) -> str:
    """The kind of a file that no decoder can read, and the way out."""
    with path.open("rb") as file:
        head = file.read(200)
    if not head:
        return "an empty file); the file is damaged, replace it"
    if head.startswith(b"version https://git-lfs") or b"/annex/objects/" in head:
        return "a pointer to a file that is not fetched); fetch it (git lfs pull, git annex get)"
    if head[4:8] == b"ftyp":
        return "HEIC, AVIF or a video, which this Pillow cannot decode); save it as JPEG or PNG"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "a kind of TIFF that Pillow cannot decode, or damaged); save it as PNG or JPEG in 8 bits, or replace it"
    return "not an image); the file is damaged, replace it"
