"""Lists of images from official code, which differ from what the labels give by rule: an order, or other pairs.

They are kept as facts, without code, in `lists/`:

coco_val2014.xz           val.txt of COCO-20i: the ids of its 40,137 images and two orders of them. Little-endian uint16 in
                          three columns: differences of the ascending ids; for each line of SVF's val.txt the place of its
                          id; the same of RePRI's val.txt. The lists of a fold are not kept: they are the images of that
                          order with 2,048 pixels of a class of the fold (BAM's data_list_0..3, equal line by line), once
                          masks are drawn by mask_mode=official.
hsnet_pascal_*.txt.xz     HSNet's Pascal-5i: an image and its classes in each line, for training and test. The order of its
                          test lists is that of names, then classes.
"""

from __future__ import annotations

import lzma
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np

from fss_svf.data.dataset import SplitName

ListedOrder = Literal["official", "hsnet"]


@cache
def coco_val_names(order: ListedOrder) -> tuple[str, ...]:
    """The 40,137 names of COCO-20i's val.txt in order.

    official: of SVF, BAM's followers (HMNet, FSSAM). hsnet: of RePRI, after PFENet; HSNet has it within each class.
    """
    gaps, *orders = np.frombuffer(_unpacked("coco_val2014.xz"), "<u2").reshape(3, -1)
    ids = np.cumsum(gaps, dtype=np.int64)[orders[order == "hsnet"]]
    return tuple(f"COCO_val2014_{image:012d}" for image in ids.tolist())


@cache
def hsnet_pascal(split: SplitName) -> dict[str, tuple[int, ...]]:
    """Classes (1..20) by image name: HSNet's 10,092 training images, 13,680 pairs; 1,381 test images, 1,868 pairs."""
    lines = _unpacked(f"hsnet_pascal_{split}.txt.xz").decode().splitlines()
    return {name: tuple(map(int, classes)) for name, *classes in map(str.split, lines)}


def _unpacked(name: str) -> bytes:
    return lzma.decompress((files("fss_svf.data") / "lists" / name).read_bytes())
