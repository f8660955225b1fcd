"""Which classes of a dataset are novel in a fold."""

from __future__ import annotations

from typing import Literal

FOLDS = 4
Partition = Literal["mod4", "contiguous"]


def novel_classes(num_classes: int, fold: int, partition: Partition) -> tuple[int, ...]:
    """The classes (1..num_classes) tested in `fold` (0..3); the others are its base classes.

    contiguous: blocks, {5i+1 .. 5i+5} of 20 (Pascal-5i everywhere; COCO-20i in PANet).
    mod4: every fourth class, {i+1, i+5, ...} (COCO-20i in PFENet, BAM, SVF, HSNet).
    """
    if partition == "mod4":
        return tuple(range(fold + 1, num_classes + 1, FOLDS))
    return tuple(c for c in range(1, num_classes + 1) if (c - 1) * FOLDS // num_classes == fold)
