"""A folder of examples, or of one for each class: photographs, and of each a mask, a box or a few points."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from fss_svf.config import from_mapping
from fss_svf.data.annotation import annotate
from fss_svf.data.file_names import image_files, plain, require_utf8
from fss_svf.errors import ConfigError, DataError, did_you_mean
from fss_svf.prediction.cutout import cut_out
from fss_svf.prediction.photos import MASK_ENDING, find_masks, find_photos, masks_of_folder, read_mask, read_photo

log = logging.getLogger(__name__)

MARKS = "annotations.yaml"
# The name of the one class of a plain folder of examples, or of a file of before there were several.
UNNAMED = ""
MOST_CLASSES = 254  # of a label in 8 bits: 0 is background, 255 is ignored
_WAYS = f"NAME{MASK_ENDING} beside it, masks/NAME.png, or a box or points in {MARKS}"

Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Example:
    """A photograph, (H, W, 3) uint8 RGB, and its mask, (H, W) uint8 in {0, 1, 255}, not without a 1.

    marked  whether the mask was made of a box or points, and may need correction
    """

    path: Path
    image: np.ndarray
    mask: np.ndarray
    marked: bool = False


@dataclass(frozen=True)
class Marks:
    """What annotations.yaml says of a photograph, in its pixels as a viewer shows it, from the upper left corner.

    box         (x0, y0, x1, y1), the ends exclusive, or a list of them. Alone it is filled, as in support_annotation=bbox
    points      (x, y) on the object, which is then cut out (cutout.py), within the box if there is one
    background  (x, y) beside the object, to go with points
    """

    box: Box | tuple[Box, ...] | None = None
    points: tuple[Point, ...] = ()
    background: tuple[Point, ...] = ()

    def __post_init__(self) -> None:
        if not (self.boxes or self.points):
            raise ConfigError("points: none given, nor a box; say one of them")

    @property
    def boxes(self) -> tuple[Box, ...]:
        if self.box is None:
            return ()
        return self.box if isinstance(self.box[0], tuple) else (self.box,)

    def mask(self, image: np.ndarray, what: str) -> np.ndarray:
        """(H, W) uint8 in {0, 1} for an (H, W, 3) image. Raises DataError for a mark outside it; `what` is the entry."""
        height, width = image.shape[:2]
        for x0, y0, x1, y1 in self.boxes:
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise DataError(
                    f"{what}.box: [{x0:g}, {y0:g}, {x1:g}, {y1:g}] does not lie in the image of {width} x {height}; "
                    "write [x0, y0, x1, y1] with x0 < x1 and y0 < y1, in pixels"
                )
        for key, points in (("points", self.points), ("background", self.background)):
            for x, y in points:
                if not (0 <= x < width and 0 <= y < height):
                    raise DataError(
                        f"{what}.{key}: [{x:g}, {y:g}] does not lie in the image of {width} x {height}; write [x, y]"
                    )
        if self.points:
            return cut_out(image, self.points, self.background, self.boxes)
        # Whole pixels: every one that the box touches.
        rows = [(int(y0), int(x0), int(np.ceil(y1)), int(np.ceil(x1))) for x0, y0, x1, y1 in self.boxes]
        return annotate(np.zeros((height, width), np.uint8), "bbox", np.array(rows))


def read_examples(folder: Path) -> list[Example]:
    """Every photograph in `folder` with its annotation, by name. Raises DataError or ConfigError naming the file."""
    if not folder.is_dir():
        raise DataError(f"support={folder}: no such folder of examples, nor a file that predict has saved (FILE.pt)")
    photos, marks = find_photos(folder, "support"), _read_marks(folder)
    unknown = sorted(set(marks) - {plain(photo.name) for photo in photos})
    if unknown:
        close = did_you_mean(unknown[0], [photo.name for photo in photos])
        raise DataError(f"{folder / MARKS}: {unknown[0]}: no such image in the folder{close}; name it with its ending")
    _warn_of_masks_alone(folder, photos)
    return [_example(photo, marks.get(plain(photo.name))) for photo in photos]


def _warn_of_masks_alone(folder: Path, photos: list[Path]) -> None:
    of_photos = {mask for photo in photos for mask in find_masks(photo)}
    alone = [mask for mask in masks_of_folder(folder) if mask not in of_photos]
    if alone:
        log.warning("%d masks have no photograph and are not used, first %s", len(alone), alone[0])


def read_classes(folder: Path) -> dict[str, list[Example]]:
    """The examples by class: of a folder of folders by their names, in order; of a plain folder as the class UNNAMED.

    Raises DataError or ConfigError naming the file, also for a class without an example and for more than 254 classes.
    """
    folders = class_folders(folder)
    if not folders:
        return {UNNAMED: read_examples(folder)}
    if len(folders) > MOST_CLASSES:
        raise DataError(f"support={folder}: {len(folders)} folders of classes; a mask holds up to {MOST_CLASSES}")
    for one in folders:
        if not image_files(one):
            raise DataError(f"{one}: no example of this class; put photographs with masks there, or remove the folder")
    return {plain(one.name): read_examples(one) for one in folders}


def class_folders(folder: Path) -> list[Path]:
    """The folders in a folder without photographs, each of a class, by name; hidden ones are not."""
    if not folder.is_dir() or image_files(folder) or (folder / MARKS).is_file():
        return []
    folders = [one for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")]
    return [require_utf8(one) for one in sorted(folders, key=lambda one: one.name)]


def _example(photo: Path, marks: Marks | None) -> Example:
    found = find_masks(photo)
    if not found and marks is None:
        raise DataError(f"{photo}: no annotation; add {_WAYS.replace('NAME', photo.stem)}")
    if len(found) + (marks is not None) > 1:
        named = [str(mask.relative_to(photo.parent)) for mask in found] + [MARKS] * (marks is not None)
        raise DataError(f"{photo}: annotated twice, in {' and '.join(named)}; keep one of them")
    image = read_photo(photo)
    if marks is not None:
        return Example(photo, image, marks.mask(image, f"{photo.parent / MARKS}: {photo.name}"), marked=True)
    mask = read_mask(found[0])
    if mask.shape != image.shape[:2]:
        raise DataError(
            f"{found[0]}: a mask of {mask.shape[1]} x {mask.shape[0]} for an image that a viewer shows at "
            f"{image.shape[1]} x {image.shape[0]}; draw it at the image's size"
        )
    return Example(photo, image, mask)


def _read_marks(folder: Path) -> dict[str, Marks]:
    """The entries of annotations.yaml by file name; none without the file."""
    path = folder / MARKS
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}); mend it there") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected lines such as 'photo.jpg: {{box: [10, 20, 200, 180]}}', got {content!r}")
    return {plain(str(name)): from_mapping(Marks, values, f"{path}: {name}") for name, values in content.items()}
