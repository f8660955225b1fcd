"""Checks of `prepare dataset=folder` for common mistakes in images and masks."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fss_svf.data.dataset import Split
from fss_svf.data.decoding import opened, orientation_of, stored_size
from fss_svf.data.images import frame_of, read_label
from fss_svf.data.index import Index
from fss_svf.data.label_values import ignored_value
from fss_svf.errors import DataError

log = logging.getLogger(__name__)


def check_classes(index: Index, masks: Sequence[Path]) -> None:
    """Warn of masks with 255 and no class. Raise DataError if no mask has a class."""
    without = [masks[number] for number in np.flatnonzero(~index.areas.any(axis=1)).tolist()]
    labels = (read_label(mask, index.wide) for mask in without)
    ignored = [mask for mask, label in zip(without, labels) if (label == ignored_value(label)).any()]
    if len(without) == len(masks):
        what = "0 and 255, and 255 is ignored" if ignored else "0, the background"
        raise DataError(
            f"{masks[0].parent}: no mask has a class: all pixels of all {len(masks):,} are {what}; write class numbers, 1 "
            f"for {index.class_names[0]!r}, at the objects"
        )
    if ignored:
        log.warning(
            "%s and %d other masks have only 0 and 255, and 255 is ignored: if it marks an object, write the number of its "
            "class",
            ignored[0],
            len(ignored) - 1,
        )


def check_turned(index: Index, images: Sequence[Path]) -> None:
    """Log how images with an EXIF orientation are read, after their headers.

    Raises DataError if some masks fit both the turned and the stored image, and others only the stored one.
    """
    frames = _turned(images, index.sizes)
    both, stored, turned = frames["both"], frames["stored"], frames["turned"]
    if both and stored:
        raise DataError(
            f"{both[0]}: has an EXIF orientation, and its mask fits turned and unturned, but that of {stored[0].name} only "
            "unturned; remove the EXIF orientation of all images whose masks were drawn unturned"
        )
    if stored:
        log.info(
            "%d images, first %s, are read without their EXIF orientation: their masks fit unturned",
            len(stored),
            stored[0],
        )
    if turned or both:
        first = (turned or both)[0]
        log.info("%d images are turned by EXIF as in viewers, first %s", len(turned) + len(both), first)
    if both:
        log.warning(
            "the masks of %d of them, first %s, fit unturned too: if they were drawn so, remove the EXIF orientation",
            len(both),
            both[0],
        )


def warn_of_turned(split: Split) -> None:
    """Warn of images with an EXIF orientation in COCO's format, where annotations belong to the stored image."""
    frames = _turned([split.image_path(number) for number in range(len(split.index))], split.index.sizes)
    if turned := frames["both"]:
        log.warning(
            "%d images, first %s, are read without their EXIF orientation, as in COCO: if they were annotated as turned by "
            "viewers, save them upright without EXIF",
            len(turned),
            turned[0],
        )


def _turned(images: Sequence[Path], sizes: np.ndarray) -> dict[str, list[Path]]:
    """The images with an EXIF orientation, by frame_of."""
    frames: dict[str, list[Path]] = defaultdict(list)
    for path, size in zip(images, sizes.tolist()):
        with opened(path) as image:
            orientation = orientation_of(image)
            if orientation != 1:
                frames[frame_of(stored_size(image), orientation, size)].append(path)
    return frames
