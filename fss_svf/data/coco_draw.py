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
from fss_svf.data.label_values import class_areas
from fss_svf.errors import DataError

MaskMode = Literal["official", "full", "first_polygon"]

Box = tuple[int, int, int, int]  # y0, x0, y1, x1, ends exclusive

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

    official: all polygons with OpenCV, whose outline belongs to the object, and no crowds; gives the official lists of
    COCO-20i (SVF, BAM, HSNet, PFENet). full: all polygons of an instance, and crowds (PANet). first_polygon: the first
    polygon of each instance and no crowds (the widely copied script of RePRI and DIaM).
    """
    # Column by column, as in COCO's masks; OpenCV draws row by row.
    canvas = np.zeros((height, width) if mask_mode == "official" else (width, height), np.uint8)
    boxes = []
    for number, crowd, segmentation, annotation in instances:
        if crowd and mask_mode != "full":
            continue
        try:
            if mask_mode == "official":
                box = _fill(canvas, segmentation, number)
            else:
                box = _draw_runs(canvas, segmentation, number, mask_mode)
        except Exception as error:  # pycocotools raises anything for damaged input
            name = annotation if isinstance(annotation, str) else f"annotation {annotation}"
            raise ValueError(f"{name}: its segmentation cannot be drawn ({error})") from None
        if box is not None:
            boxes.append((number, *box))
    # Ten times faster than NumPy's transpose.
    return canvas if mask_mode == "official" else cv2.transpose(canvas), tuple(boxes)


def _draw_runs(columns: np.ndarray, segmentation: Any, number: int, mask_mode: MaskMode) -> Box | None:
    """Write `number` into the (W, H) canvas where pycocotools sees the instance. Its box; None without a pixel."""
    width, height = columns.shape
    if mask_mode == "first_polygon":
        if isinstance(segmentation, dict):
            return None
        segmentation = segmentation[:1]
    starts, stops = mask_runs(segmentation, height, width)
    flat = columns.reshape(-1)
    for start, stop in zip(starts.tolist(), stops.tolist()):
        flat[start:stop] = number
    return runs_box(starts, stops, height) if len(starts) else None


def _fill(label: np.ndarray, segmentation: Any, number: int) -> Box | None:
    """Fill the polygons of an instance in the (H, W) label, corners cut to integers. Its box; None without a pixel.

    Run lengths, which COCO has for crowds alone, are drawn as they are.
    """
    height, width = label.shape
    if isinstance(segmentation, dict):
        columns = np.zeros((width, height), np.uint8)
        box = _draw_runs(columns, segmentation, 1, "full")
        label[columns.T == 1] = number
        return box
    polygons = [polygon.astype(np.int32).reshape(-1, 2) for polygon in _corners(segmentation)]
    for polygon in polygons:  # one at a time: in one call what two of them share would be a hole
        cv2.fillPoly(label, [polygon], number)
    corners = np.concatenate(polygons)
    (x0, y0), (x1, y1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    if x0 >= 0 and y0 >= 0 and x1 < width and y1 < height:
        return y0, x0, y1 + 1, x1 + 1
    # Of a polygon that leaves the image, the corners do not say where the rest ends.
    alone = np.zeros_like(label)
    for polygon in polygons:
        cv2.fillPoly(alone, [polygon], 1)
    x, y, across, down = cv2.boundingRect(alone)
    return (y, x, y + down, x + across) if across else None


def _corners(segmentation: Any) -> list[np.ndarray]:
    """The polygons as float64 x, y, x, y, ... Raises ValueError."""
    polygons = [np.frombuffer(polygon) for polygon in segmentation]
    if not all(np.abs(polygon).max(initial=0) <= FARTHEST for polygon in polygons):
        raise ValueError(f"a corner is not a number, or farther than {FARTHEST:,.0f} pixels")
    return polygons


def mask_runs(segmentation: Any, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(R,) int64 starts and stops of the runs of an instance's pixels, counted down the columns from the top left.

    The runs come from pycocotools; decoding complete masks, of which a small part is needed, would take most of the time.
    Raises ValueError, or an error of pycocotools, if there is no mask of this size.
    """
    if isinstance(segmentation, tuple):
        encoded = coco_mask.frPyObjects(_corners(segmentation), height, width)
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


def runs_box(starts: np.ndarray, stops: np.ndarray, height: int) -> Box:
    """The box y0, x0, y1, x1 (ends exclusive) around runs down columns of `height` pixels."""
    first, last = starts // height, (stops - 1) // height
    if (first != last).any():  # a run continues in the next column, so the box has the bottom and the top row
        return 0, int(first[0]), height, int(last[-1]) + 1
    top, bottom = int((starts - first * height).min()), int((stops - last * height).max())
    return top, int(first[0]), bottom, int(last[-1]) + 1
