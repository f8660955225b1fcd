"""Draws COCO's instances into label PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from fss_svf.data.coco_annotations import AnnotatedImage, Instance
from fss_svf.data.coco_fields import short_repr
from fss_svf.data.identity import label_digest, record
from fss_svf.data.images import image_size, write_label
from fss_svf.data.index import ImageRow
from fss_svf.data.voc import class_areas
from fss_svf.errors import DataError

MaskMode = Literal["full", "first_polygon"]

FARTHEST = 1e5  # px; pycocotools allocates memory by the length of an outline, and without limit at a NaN


def draw_image(images: Path, labels: Path, mask_mode: MaskMode, item: AnnotatedImage) -> ImageRow:
    """Draw the label PNG of an image and return its row of the index. Raises DataError naming image and annotation."""
    stem, file, height, width, instances = item
    image = record(images / file)
    size = image_size(images / file)
    if size != (height, width):
        raise DataError(
            f"{images / file}: image of {size[1]} x {size[0]}, annotated as {width} x {height}; replace the image"
        )
    try:
        label, boxes = draw_label(instances, height, width, mask_mode)
    except ValueError as error:
        raise DataError(f"{images / file}: {error}; correct or remove the annotation") from None
    (labels / stem).parent.mkdir(parents=True, exist_ok=True)  # a name may contain subfolders
    write_label(labels / f"{stem}.png", label)
    files = image, record(labels / f"{stem}.png")
    return ImageRow(stem, height, width, class_areas(label), boxes, label_digest(label), files)


def draw_label(
    instances: Sequence[Instance], height: int, width: int, mask_mode: MaskMode
) -> tuple[np.ndarray, tuple[tuple[int, int, int, int, int], ...]]:
    """(H, W) uint8 class numbers, where later instances overwrite earlier ones; and the box (class, y0, x0, y1, x1), with
    exclusive ends, of each complete instance. Raises ValueError naming the annotation.

    full: all polygons of an instance, and crowds (PANet). first_polygon: the first polygon of each instance and no
    crowds (the widely copied script of RePRI and DIaM).
    """
    columns = np.zeros(width * height, np.uint8)  # column by column, as in COCO's masks
    boxes = []
    for number, crowd, segmentation, annotation in instances:
        if mask_mode == "first_polygon":
            if crowd or isinstance(segmentation, dict):
                continue
            segmentation = segmentation[:1]
        try:
            starts, stops = mask_runs(segmentation, height, width)
        except Exception as error:  # pycocotools raises anything for damaged input
            name = annotation if isinstance(annotation, str) else f"annotation {annotation}"
            raise ValueError(f"{name}: its segmentation cannot be drawn ({error})") from None
        for start, stop in zip(starts.tolist(), stops.tolist()):
            columns[start:stop] = number
        if len(starts):
            boxes.append((number, *runs_box(starts, stops, height)))
    return cv2.transpose(columns.reshape(width, height)), tuple(boxes)  # ten times faster than NumPy's


def mask_runs(segmentation: Any, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(R,) int64 starts and stops of the runs of an instance's pixels, counted down the columns from the top left.

    The runs come from pycocotools; decoding complete masks, of which a small part is needed, would take most of the time.
    Raises ValueError, or an error of pycocotools, if there is no mask of this size.
    """
    if isinstance(segmentation, tuple):
        polygons = [np.frombuffer(polygon) for polygon in segmentation]
        if not all(np.abs(polygon).max(initial=0) <= FARTHEST for polygon in polygons):
            raise ValueError(f"a corner is not a number, or farther than {FARTHEST:,.0f} pixels")
        encoded = coco_mask.frPyObjects(polygons, height, width)
        lengths = run_lengths((encoded[0] if len(encoded) == 1 else coco_mask.merge(encoded))["counts"])
    else:
        lengths = _listed_lengths(segmentation, height, width)
    if lengths.min() < 0 or lengths.max() > height * width or lengths.sum() != height * width:
        raise ValueError("its run lengths do not add up to the image")
    ends = np.cumsum(lengths)
    stops = ends[1::2]  # runs of background and object alternate, background first
    starts = ends[0::2][: len(stops)]
    nonempty = stops > starts
    return starts[nonempty], stops[nonempty]


def _listed_lengths(rle: dict[str, Any], height: int, width: int) -> np.ndarray:
    """(N,) int64 run lengths of COCO's {"size": [height, width], "counts": numbers, or a compressed string}."""
    if rle.get("size") != [height, width]:
        raise ValueError(
            f"run lengths of size {short_repr(rle.get('size'))}, the image's [height, width] is {[height, width]}"
        )
    if isinstance(rle.get("counts"), str):
        return run_lengths(rle["counts"].encode())
    lengths = np.asarray(rle.get("counts"))
    integral = lengths.dtype.kind in "iu" or (lengths.dtype.kind == "f" and np.array_equal(lengths, np.rint(lengths)))
    if lengths.ndim != 1 or len(lengths) == 0 or not integral or not np.isfinite(lengths).all():
        raise ValueError("counts is neither a list of whole numbers nor a compressed string")
    return lengths.astype(np.int64)


def run_lengths(counts: bytes) -> np.ndarray:
    """(N,) int64 run lengths from COCO's compressed string: 5 bits in each letter, lowest first; from the fourth number
    on, each is the difference to the one two before. Raises ValueError if it ends within a number."""
    letters = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((letters & 32) == 0)
    if len(last) == 0 or last[-1] != len(letters) - 1:
        raise ValueError("its compressed run lengths are cut off")
    first = np.concatenate([[0], last[:-1] + 1])
    shifts = 5 * (np.arange(len(letters)) - np.repeat(first, last - first + 1))
    numbers = np.add.reduceat((letters & 31) << shifts, first)
    numbers -= (letters[last] & 16) << (shifts[last] + 1)  # the highest bit is the sign
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def runs_box(starts: np.ndarray, stops: np.ndarray, height: int) -> tuple[int, int, int, int]:
    """The box y0, x0, y1, x1 (ends exclusive) around runs down columns of `height` pixels."""
    first, last = starts // height, (stops - 1) // height
    if (first != last).any():  # a run continues in the next column, so the box has the bottom and the top row
        return 0, int(first[0]), height, int(last[-1]) + 1
    top, bottom = int((starts - first * height).min()), int((stops - last * height).max())
    return top, int(first[0]), bottom, int(last[-1]) + 1
