"""Kinds of support annotation: the mask, boxes around the objects, or scribbles through them."""

from __future__ import annotations

import cv2
import numpy as np

from fss_svf.data.dataset import SupportAnnotation
from fss_svf.data.label_values import IGNORE

_LINE_WIDTH = 3 / 500  # of the longer side of the image
_MIN_AREA = 0.1  # share of the largest object's area; smaller objects get no scribble
_MAX_LINES = 20
_CELLS = 1000  # an object is divided into about as many cells, and its scribble runs from cell to cell
_GRID = 200  # most cells along its longer side; a cell is then narrower than a line
_MIN_DEPTH = 0.4  # share of the greatest depth; keeps the ends of a scribble away from the border
_SMOOTHING = 7  # cells


def annotate(mask: np.ndarray, kind: SupportAnnotation, boxes: np.ndarray | None = None) -> np.ndarray:
    """A support mask, (H, W) uint8 in {0, 1, 255}, in the given kind of annotation; same shape and values.

    mask      unchanged.
    bbox      boxes filled with 1: `boxes`, (n, 4) int of (y0, x0, y1, x1) with exclusive ends, one for each instance.
              If instances are not known, one box around each 8-connected component of mask == 1. Pixels ignored in
              the mask stay ignored, as in BAM: VOC's void border still outlines the object within its box.
              (The boxes of BAM's code are a row and a column larger: OpenCV's rectangle includes its end.)
    scribble  1 on a line through the middle of each object, 0 on a line in the background, 255 elsewhere.

    A pure function of its arguments. `mask` is not modified, but may be returned. Raises ValueError for another kind and
    for boxes of another shape.
    """
    if kind == "mask":
        return mask
    if kind == "bbox":
        return _boxes(mask, boxes)
    if kind == "scribble":
        return _scribbles(mask)
    raise ValueError(f"annotate: expected 'mask', 'bbox' or 'scribble', got {kind!r}")


def _boxes(mask: np.ndarray, boxes: np.ndarray | None) -> np.ndarray:
    if boxes is None:
        stats = cv2.connectedComponentsWithStats((mask == 1).astype(np.uint8), connectivity=8)[2]
        left, top, width, height = stats[1:, :4].T
        boxes = np.stack([top, left, top + height, left + width], axis=1)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"annotate: expected boxes of shape (n, 4), got {boxes.shape}")
    filled = np.zeros_like(mask)
    for y0, x0, y1, x1 in boxes.clip(0):
        filled[y0:y1, x0:x1] = 1
    filled[mask == IGNORE] = IGNORE
    return filled


def _scribbles(mask: np.ndarray) -> np.ndarray:
    """Scribbles similar to those of PANet, which come from the robot of DAVIS' interactive challenge.

    A line is 3 pixels wide in an image of 500 pixels. It stays within its object, or within the largest component of the
    background, and is interrupted at gaps too narrow for the scale of the object. Objects below a tenth of the largest
    area, and all but the 20 largest, get none.
    """
    drawn = np.full_like(mask, IGNORE)
    width = max(1, round(max(mask.shape) * _LINE_WIDTH))
    for value, limit in ((1, _MAX_LINES), (0, 1)):
        # OpenCV's statistics would take longer than everything else here.
        count, labels = cv2.connectedComponents((mask == value).astype(np.uint8), connectivity=8)
        area = np.bincount(labels.ravel(), minlength=count)[1:]
        for index in np.argsort(-area, kind="stable")[:limit]:
            if area[index] >= _MIN_AREA * area.max():
                region = labels == index + 1
                x, y, w, h = cv2.boundingRect(region.view(np.uint8))
                crop = slice(y, y + h), slice(x, x + w)
                drawn[crop][_line(region[crop], width)] = value
    return drawn


def _line(region: np.ndarray, width: int) -> np.ndarray:
    """The (H, W) bool pixels of a line through the middle of a (H, W) bool region, connected and not empty."""
    area = np.count_nonzero(region)
    if area <= width**2:
        return region
    scale = min(1, _GRID / max(region.shape), (_CELLS / area) ** 0.5)
    size = [max(1, round(side * scale)) for side in region.shape]
    # The covered share of each cell: above zero wherever the region is, so that it stays connected.
    cover = cv2.resize(region.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
    # The region ends at the image's border too.
    full = np.pad(cover >= 0.5, 1).astype(np.uint8)
    path = _long_path(cover + cv2.distanceTransform(full, cv2.DIST_L2, 5)[1:-1, 1:-1])
    path = (path + 0.5) * (np.array(region.shape) / size) - 0.5
    # Lines of one pixel at each offset of a disc: the width of OpenCV's wider lines differs between its versions.
    disc = np.argwhere(np.hypot(*(np.indices((width, width)) - (width - 1) / 2)) <= width / 2) - (width - 1) // 2
    lines = (np.round(path).astype(np.int32) + disc[:, None].astype(np.int32))[..., ::-1]
    line = cv2.polylines(np.zeros(region.shape, np.uint8), list(lines), False, 1) > 0
    line &= region
    if not line.any():
        # The line ran between branches thinner than a cell.
        pixels = np.argwhere(region)
        line[tuple(pixels[((pixels - path[len(path) // 2]) ** 2).sum(axis=1).argmin()])] = True
    return line


def _long_path(depth: np.ndarray) -> np.ndarray:
    """The (n, 2) float (y, x) points of a long path through the middle of (h, w) float cell depths, 0 outside.

    A step costs its length / depth, so that paths keep to the middle, plus twice its length / the greatest depth, so that
    they do not bend too much. The path is the cheapest between two deep cells: one is the farthest from the deepest cell,
    the other the farthest from the first.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import dijkstra

    inside = depth > 0
    deep, cells = depth[inside], np.argwhere(inside)
    node = (np.cumsum(inside) - 1).reshape(inside.shape)
    height, width = depth.shape
    pairs = []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = slice(height - dy), slice(max(0, -dx), width - max(0, dx))
        there = slice(dy, height), slice(max(0, dx), width + min(0, dx))
        both = inside[here] & inside[there]
        pairs.append(np.stack([node[here][both], node[there][both]]))
    # int32, which the Dijkstra of SciPy 1.11 requires; there are a few thousand cells at most.
    a, b = np.concatenate(pairs, axis=1).astype(np.int32)
    cost = np.hypot(*(cells[a] - cells[b]).T) * (2 / (deep[a] + deep[b]) + 2 / deep.max())
    graph = coo_array((np.r_[cost, cost], (np.r_[a, b], np.r_[b, a])), shape=(len(deep), len(deep))).tocsr()

    def farthest(start: int) -> tuple[int, np.ndarray]:
        distance, before = dijkstra(graph, indices=start, return_predecessors=True)
        return int(np.where(deep >= _MIN_DEPTH * deep.max(), distance, 0).argmax()), before

    start, _ = farthest(int(deep.argmax()))
    at, before = farthest(start)
    path = [at]
    while at != start:
        at = int(before[at])
        path.append(at)
    # A moving average. Its window is not longer than the path.
    reach = min(_SMOOTHING, len(path)) // 2
    steps = np.pad(cells[path], ((reach, reach), (0, 0)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(steps, 2 * reach + 1, axis=0).mean(axis=-1)
