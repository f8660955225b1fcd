"""What a person's own images and masks are likely to get wrong: said by `prepare`, before a run counts it."""

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
from fss_svf.episode import IGNORE
from fss_svf.errors import DataError

log = logging.getLogger(__name__)


def check_classes(index: Index, masks: Sequence[Path]) -> None:
    """Warn of masks that hold 255 and no class; raise DataError where no mask holds a class."""
    without = [masks[number] for number in np.flatnonzero(~index.areas.any(axis=1)).tolist()]
    ignored = [mask for mask in without if (read_label(mask) == IGNORE).any()]
    if len(without) == len(masks):
        what = "0 and 255, and 255 is ignored" if ignored else "0, the background"
        raise DataError(
            f"{masks[0].parent}: no mask holds a class: all pixels of all {len(masks):,} are {what}; write class numbers, 1 "
            f"for {index.class_names[0]!r}, where the objects are"
        )
    if ignored:
        log.warning(
            "%s and %d other masks hold 0 and 255 alone, and 255 is ignored: where it marks an object, write the number of "
            "its class",
            ignored[0],
            len(ignored) - 1,
        )


def check_turned(index: Index, images: Sequence[Path]) -> None:
    """Log how images are read that EXIF turns. Raises DataError where the masks leave it open and others speak against it.

    Opens the header of each image.
    """
    frames = _turned(images, index.sizes)
    both, stored, shown = frames["both"], frames["stored"], frames["shown"]
    if both and stored:
        raise DataError(
            f"{both[0]}: turned by EXIF, and its mask fits it turned and unturned, while the mask of {stored[0].name} fits "
            "its image unturned only; remove the EXIF orientation of all images whose masks were drawn unturned"
        )
    if stored:
        log.info("%d images, first %s, are not turned by their EXIF: their masks fit unturned", len(stored), stored[0])
    if shown or both:
        first = (shown or both)[0]
        log.info("%d images are turned by EXIF as viewers do, first %s", len(shown) + len(both), first)
    if both:
        log.warning(
            "the masks of %d of them, first %s, would fit unturned too: if they were drawn so, remove the EXIF orientation",
            len(both),
            both[0],
        )


def warn_of_turned(split: Split) -> None:
    """Warn of images that EXIF turns, in COCO's format, where annotations are of the image as it is stored."""
    frames = _turned([split.image_path(number) for number in range(len(split.index))], split.index.sizes)
    if turned := frames["both"]:
        log.warning(
            "%d images, first %s, are not turned by their EXIF, as COCO's are not: if they were annotated as viewers show "
            "them, save them upright without EXIF",
            len(turned),
            turned[0],
        )


def _turned(images: Sequence[Path], sizes: np.ndarray) -> dict[str, list[Path]]:
    """The images that have an EXIF orientation, by the frame that has the size of their label (frame_of)."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path, size in zip(images, sizes.tolist()):
        with opened(path) as image:
            orientation = orientation_of(image)
            if orientation != 1:
                found[frame_of(stored_size(image), orientation, size)].append(path)
    return found
