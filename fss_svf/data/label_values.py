"""Which value a class has in a label, and how many classes there may be.

A label file of 8 bits holds class numbers from 1 to 254; 0 is background, 255 is ignored. The label files of a dataset with
more classes have 16 bits, and 65,535 is ignored. In memory a label always has 8 bits: those of such a dataset hold the
ranks of an image's classes (Index.value), so that caches, loaders and devices need no second form.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fss_svf.errors import DataError

IGNORE = 255  # as in fss_svf.episode, with which the processes of a preparation would import PyTorch
MOST_IN_8_BITS = IGNORE - 1
MOST_CLASSES = 32_767  # of a dataset, as class numbers are stored in an index
ABSENT = IGNORE - 1  # the value of a class that an image with ranks does not have
MOST_IN_IMAGE = ABSENT - 1


def is_wide(classes: int) -> bool:
    """Whether the label files of a dataset with so many classes have 16 bits."""
    return classes > MOST_IN_8_BITS


def ignored_value(label: np.ndarray) -> int:
    """The value that is ignored in an (H, W) label as in its file: 255 of uint8, 65,535 of uint16."""
    return int(np.iinfo(label.dtype).max)


def class_areas(label: np.ndarray) -> dict[int, int]:
    """The number of pixels of every class in an (H, W) uint8 or uint16 label, without background and what is ignored."""
    ignored = ignored_value(label)
    counts = np.bincount(label.reshape(-1), minlength=ignored + 1)
    return {int(c): int(counts[c]) for c in np.flatnonzero(counts[:ignored]) if c != 0}


def require_classes(names: Sequence[str], where: object) -> None:
    """Raise DataError for no class, or for more than an index holds."""
    if not 1 <= len(names) <= MOST_CLASSES:
        raise DataError(f"{where}: {len(names):,} classes; a dataset has 1 to {MOST_CLASSES:,}")


def require_8_bits(class_names: Sequence[str], what: str) -> None:
    """Raise DataError if a dataset has too many classes for what reads all of an image's classes at once."""
    if is_wide(len(class_names)):
        raise DataError(
            f"{what} label every pixel with one of at most {MOST_IN_8_BITS} classes, this dataset has "
            f"{len(class_names):,}; choose a method without a base learner"
        )
