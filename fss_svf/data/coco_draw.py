"""Drawing COCO's instances into label PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from fss_svf.data.coco_annotations import AnnotatedImage, Instance
from fss_svf.data.coco_fields import shown
from fss_svf.data.identity import label_digest, record
from fss_svf.data.images import image_size, write_label
from fss_svf.data.index import ImageRow
from fss_svf.data.voc import class_areas
from fss_svf.errors import DataError

MaskMode = Literal["full", "first_polygon"]

FARTHEST = 1e5  # px; pycocotools asks for memory by the length of an outline, and for all there is at a NaN


def draw_image(images: Path, labels: Path, mask_mode: MaskMode, item: AnnotatedImage) -> ImageRow:
    """Draw one image's label PNG and return its row of the index. Raises DataError naming image and annotation."""
    stem, file, height, width, instances = item
    image = record(images / file)
    found = image_size(images / file)
    if found != (height, width):
        raise DataError(
            f"{images / file}: image of {found[1]} x {found[0]}, annotated as {width} x {height}; replace the image"
        )
    try:
        label, boxes = draw_label(instances, height, width, mask_mode)
    except ValueError as error:
        raise DataError(f"{images / file}: {error}; mend or remove the annotation") from None
    (labels / stem).parent.mkdir(parents=True, exist_ok=True)  # a name may hold sub folders
    write_label(labels / f"{stem}.png", label)
    files = image, record(labels / f"{stem}.png")
    return ImageRow(stem, height, width, class_areas(label), boxes, label_digest(label), files)


def draw_label(
    instances: Sequence[Instance], height: int, width: int, mask_mode: MaskMode
) -> tuple[np.ndarray, tuple[tuple[int, int, int, int, int], ...]]:
    """(H, W) uint8 class numbers, later instances overwriting earlier ones; and a box (class, y0, x0, y1, x1), its end
    exclusive, around each instance drawn, as if it were alone. Raises ValueError naming the annotation.

    full: all polygons of an instance, and crowds (PANet). first_polygon: the first polygon of each instance and no
    crowds (the widely copied script of RePRI and DIaM).
    """
    columns = np.zeros(width * height, np.uint8)  # column after column, as COCO's masks run
    boxes = []
    for number, crowd, segmentation, annotation in instances:
        if mask_mode == "first_polygon":
            if crowd or isinstance(segmentation, dict):
                continue
            segmentation = segmentation[:1]
        try:
            starts, stops = mask_runs(segmentation, height, width)
        except Exception as error:  # pycocotools raises whatever its C code meets
            named = annotation if isinstance(annotation, str) else f"annotation {annotation}"
            raise ValueError(f"{named}: its segmentation cannot be drawn ({error})") from None
        for start, stop in zip(starts.tolist(), stops.tolist()):
            columns[start:stop] = number
        if len(starts):
            boxes.append((number, *runs_box(starts, stops, height)))
    return cv2.transpose(columns.reshape(width, height)), tuple(boxes)  # ten times faster than NumPy's


def mask_runs(segmentation: Any, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(R,) int64 starts and stops of the runs of an instance's pixels, counted down the columns from the top left.

    The runs are pycocotools' own; decoding each mask whole, to copy a small part of it, takes most of the time.
    Raises ValueError, or whatever pycocotools does, where there is no mask of this size.
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
    stops = ends[1::2]  # runs of background and object take turns, background first
    starts = ends[0::2][: len(stops)]
    held = stops > starts
    return starts[held], stops[held]


def _listed_lengths(rle: dict[str, Any], height: int, width: int) -> np.ndarray:
    """(N,) int64 run lengths of COCO's {"size": [height, width], "counts": numbers, or a compressed string}."""
    if rle.get("size") != [height, width]:
        raise ValueError(
            f"run lengths of size {shown(rle.get('size'))}, the image's [height, width] is {[height, width]}"
        )
    if isinstance(rle.get("counts"), str):
        return run_lengths(rle["counts"].encode())
    lengths = np.asarray(rle.get("counts"))
    whole = lengths.dtype.kind in "iu" or (lengths.dtype.kind == "f" and np.array_equal(lengths, np.rint(lengths)))
    if lengths.ndim != 1 or len(lengths) == 0 or not whole or not np.isfinite(lengths).all():
        raise ValueError("counts is neither a list of whole numbers nor a compressed string")
    return lengths.astype(np.int64)


def run_lengths(counts: bytes) -> np.ndarray:
    """(N,) int64 run lengths from COCO's compressed string: numbers of 5 bits a letter, lowest first; from the fourth
    on each is the difference to the number two before. Raises ValueError when it ends within a number."""
    letters = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((letters & 32) == 0)
    if len(last) == 0 or last[-1] != len(letters) - 1:
        raise ValueError("its compressed run lengths are cut off")
    first = np.concatenate([[0], last[:-1] + 1])
    places = 5 * (np.arange(len(letters)) - np.repeat(first, last - first + 1))
    numbers = np.add.reduceat((letters & 31) << places, first)
    numbers -= (letters[last] & 16) << (places[last] + 1)  # the highest bit is the sign
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def runs_box(starts: np.ndarray, stops: np.ndarray, height: int) -> tuple[int, int, int, int]:
    """The box y0, x0, y1, x1 (end exclusive) around runs that go down columns of `height` pixels."""
    first, last = starts // height, (stops - 1) // height
    if (first != last).any():  # on into the next column: both the lowest and the topmost row
        return 0, int(first[0]), height, int(last[-1]) + 1
    top, bottom = int((starts - first * height).min()), int((stops - last * height).max())
    return top, int(first[0]), bottom, int(last[-1]) + 1
