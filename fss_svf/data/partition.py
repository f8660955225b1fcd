"""The novel classes of a fold, the base classes held out of a training, and the part of the images that trains."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import ceil
from typing import Literal

import numpy as np

from fss_svf.errors import ConfigError, did_you_mean, listing

FOLDS = 4
# Enough for an episode of five shots.
KEPT_OF_CLASS = 6
Partition = Literal["mod4", "contiguous"]


def novel_classes(num_classes: int, fold: int, partition: Partition) -> tuple[int, ...]:
    """The classes (1..num_classes) tested in `fold` (0..3). The others are its base classes.

    contiguous: blocks, {5i+1 .. 5i+5} of 20 (Pascal-5i in all papers; COCO-20i in PANet).
    mod4: every fourth class, {i+1, i+5, ...} (COCO-20i in PFENet, BAM, SVF, HSNet).
    """
    if partition == "mod4":
        return tuple(range(fold + 1, num_classes + 1, FOLDS))
    return tuple(c for c in range(1, num_classes + 1) if (c - 1) * FOLDS // num_classes == fold)


def held_out_classes(
    class_names: Sequence[str], base: Sequence[int], requested: Sequence[str] | int
) -> tuple[int, ...]:
    """The classes among `base` that choose a checkpoint instead of being trained on, ascending.

    requested: their names, or their number; then those whose names have the smallest SHA-256 are chosen. That order does
    not depend on seed, shot or fold: the runs of a sweep train on the same classes, and a larger number includes the
    classes of a smaller one. Raises ConfigError for a name that is no base class, and if no class is left to train on.
    """
    names = {class_names[c - 1]: c for c in base}
    if isinstance(requested, int):
        chosen = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:requested]
    else:
        chosen = list(dict.fromkeys(requested))
        for name in chosen:
            if name not in names:
                why = "is novel in this fold" if name in class_names else f"is no class{did_you_mean(name, names)}"
                raise ConfigError(f"validate.held_out: {name!r} {why}; name base classes: {listing(names)}")
    if (requested if isinstance(requested, int) else len(chosen)) >= len(base):
        raise ConfigError(
            f"validate.held_out: all {len(base)} base classes of this fold would be held out; leave one to train on, "
            f"{len(base) - 1} or fewer"
        )
    return tuple(sorted(names[name] for name in chosen))


def part_of_images(names: Sequence[str], listed: np.ndarray, fraction: float) -> np.ndarray:
    """(N,) bool: the images of a part. It has `fraction` of the listed images, rounded up, as large a share of the others,
    and the first images of each class, KEPT_OF_CLASS of them, so that a part does not lose a class.

    names   (N,) of the images
    listed  (N, C) bool, the images listed for each class

    Images are in the order of the SHA-256 of their names. That order does not depend on seed, shot or fold: the runs of a
    study train on the same part, and a larger fraction includes the images of a smaller one.
    """
    digests = [hashlib.sha256(str(name).encode()).digest() for name in names]
    order = np.array(sorted(range(len(names)), key=digests.__getitem__), int)
    listed = listed[order]  # in that order, as all below
    of_any = np.any(listed, axis=1)
    in_part = np.zeros(len(names), bool)
    last = np.flatnonzero(of_any)[: ceil(fraction * np.count_nonzero(of_any))]
    in_part[: last[-1] + 1 if len(last) else None] = True
    for of_class in listed.T:
        in_part[np.flatnonzero(of_class)[:KEPT_OF_CLASS]] = True
    part = np.zeros(len(names), bool)
    part[order] = in_part
    return part
