"""Photographs and masks as people have them: turned by EXIF, grey, transparent, black and white."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from PIL import Image

from fss_svf.data.decoding import load, missing, opened, orientation_of, turn
from fss_svf.data.file_names import IMAGE_ENDINGS, image_files, in_subfolders, plain, require_utf8
from fss_svf.data.images import read_image
from fss_svf.data.label_values import IGNORE
from fss_svf.errors import DataError, listing

log = logging.getLogger(__name__)

MASK_ENDING = ".mask.png"


def find_photos(path: Path, key: str) -> list[Path]:
    """The image files in the folder `path` itself, by name, without NAME.mask.png; or the one file `path`.

    Two names that differ in their ending alone are refused, since masks are named after them, and so is a name that is not
    UTF-8. A link to nothing is listed: reading it says so. `key` is the config key that gave the path. Raises DataError,
    also where there is none.
    """
    if path.is_file():
        return [require_utf8(path)]
    if not path.is_dir():
        raise DataError(missing(path) if path.is_symlink() else f"{key}={path}: no such file or folder")
    found: dict[str, Path] = {}
    for file in image_files(path):
        if file.name.lower().endswith(MASK_ENDING):
            continue
        # As file systems that know no capitals see it.
        other = found.setdefault(plain(file.stem).casefold(), file)
        if other is not file:
            raise DataError(f"{file}: its mask would have the same name as that of {other.name}; rename one of the two")
    below = in_subfolders(path)
    if not found:
        raise DataError(f"{key}={path}: no image in this folder ({', '.join(IMAGE_ENDINGS)}){below}")
    if below:
        log.warning("%s=%s: %d images%s", key, path, len(found), below)
    return list(found.values())


def find_masks(photo: Path) -> list[Path]:
    """The masks of a photograph: NAME.mask.png beside it and masks/NAME.png, in whatever spelling of NAME and ending."""
    masks = _masks(photo.parent)
    return [mask for mask, ending in masks if plain(mask.name[: -len(ending)]) == plain(photo.stem)]


def masks_of_folder(folder: Path) -> list[Path]:
    """The masks of all photographs of a folder, and those of none."""
    return [mask for mask, _ in _masks(folder)]


def _masks(folder: Path) -> list[tuple[Path, str]]:
    """Each mask, and the ending that follows the photograph's name in its own."""
    return [
        (mask, ending)
        for place, ending in ((folder, MASK_ENDING), (folder / "masks", ".png"))
        for mask in (image_files(place, (".png",)) if place.is_dir() else ())
        if mask.name.lower().endswith(ending)
    ]


def read_photo(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB as a viewer shows it: turned by EXIF, and on white where it is transparent. Raises DataError."""
    return read_image(path, turned=True)


def read_mask(path: Path) -> np.ndarray:
    """(H, W) uint8 in {0, 1, 255}: background, object, ignored. Raises DataError for a file that can be read two ways.

    One value beside 0 is the object, whichever: 1, or the white of a black and white picture. Two are 1 and 255 of a
    label (in a palette, any class and 255), where 255 is not counted.
    """
    with opened(path) as file:
        load(file)
        values, numbers = _values(file, path)
        values = turn(values, orientation_of(file))
    found = [int(v) for v in np.unique(values) if v]
    if not found:
        raise DataError(f"{path}: the mask is empty, all of it is 0; paint the object white (or 1), or leave it out")
    label = len(found) == 2 and found[1] == IGNORE and (numbers or found[0] == 1)
    if len(found) > 1 and not label:
        raise DataError(
            f"{path}: holds {len(found) + 1} values ({listing([0, *found])}); a mask is black and white without soft "
            "edges, or 0, 1 and 255 (255 is not counted); save it so"
        )
    mask = (values == found[0]).astype(np.uint8)
    if label:
        mask[values == IGNORE] = IGNORE
    return mask


def _values(image: Image.Image, path: Path) -> tuple[np.ndarray, bool]:
    """The (H, W) values of a mask, and whether they are class numbers in a palette."""
    if image.mode == "P":
        colours = {colour for _, colour in image.convert("RGB").getcolors(256) or []}
        if not colours <= {(0, 0, 0), (255, 255, 255)}:
            return np.asarray(image), True
        image = image.convert("RGB")  # black and white, in whatever order
    if image.mode == "1":
        image = image.convert("L")
    if image.mode in ("RGBA", "LA"):
        if np.asarray(image)[..., -1].min() < 255:
            raise DataError(
                f"{path}: a mask that is transparent in parts; save it in black and white without transparency"
            )
        image = image.convert(image.mode[:-1])
    values = np.asarray(image)
    if image.mode == "RGB":
        if (values != values[..., :1]).any():
            raise DataError(f"{path}: a mask in colours; save it in black and white, with the object white")
        values = values[..., 0]
    return values, False
