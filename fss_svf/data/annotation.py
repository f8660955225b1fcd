"""The kinds of annotation a support can have: its mask, boxes around its objects, or scribbles through them."""

from __future__ import annotations

import cv2
import numpy as np

from fss_svf.data.dataset import SupportAnnotation
from fss_svf.episode import IGNORE

_LINE_WIDTH = 3 / 500  # of the longer side of the image
_MIN_AREA = 0.1  # of the largest object's: smaller objects get no scribble
_MAX_LINES = 20
_CELLS = 1000  # an object is divided into about as many, and its scribble is sought among them
_GRID = 200  # cells along its longer side at most: a cell is then smaller than a line is wide
_MIN_DEPTH = 0.4  # of the deepest cell's: a scribble keeps its ends away from the border
_SMOOTHING = 7  # cells


def annotate(mask: np.ndarray, kind: SupportAnnotation, boxes: np.ndarray | None = None) -> np.ndarray:
    """(H, W) uint8 in {0, 1, 255} to the same shape and values: the mask of a support as its annotator would give it.

    mask      as it is.
    bbox      boxes filled with 1: `boxes`, (n, 4) int of (y0, x0, y1, x1) with the ends exclusive, one an instance,
              where instances are known; else one around each 8-connected component of mask == 1. Pixels ignored in
              the mask are ignored again, as in BAM: VOC's void border still outlines the object within its box.
              (BAM's own boxes are a row and a column larger: OpenCV's rectangle includes its end.)
    scribble  1 on a line through the middle of each object, 0 on a line in the background, 255 elsewhere.

    A pure function of its arguments. `mask` is never changed, but may be what is returned. Raises ValueError for any
    other kind and for boxes of another shape.
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
    """Scribbles as PANet has them from the robot of DAVIS' interactive challenge, by an algorithm of our own.

    A line is 3 pixels wide in an image of 500, and stays within its object, or within the largest component of the
    background: where it crosses a gap too narrow to be seen at the scale of the object, it is interrupted. Objects
    below a tenth of the largest's area get none, nor does any beyond the 20 largest.
    """
    drawn = np.full_like(mask, IGNORE)
    width = max(1, round(max(mask.shape) * _LINE_WIDTH))
    for value, limit in ((1, _MAX_LINES), (0, 1)):
        # Without OpenCV's statistics, which take longer than all the rest.
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
    """(H, W) bool region, connected and not empty, to the (H, W) bool pixels of a line through its middle."""
    area = np.count_nonzero(region)
    if area <= width**2:
        return region
    scale = min(1, _GRID / max(region.shape), (_CELLS / area) ** 0.5)
    size = [max(1, round(side * scale)) for side in region.shape]
    # The share of each cell: above zero wherever the region is, so that it neither vanishes nor falls apart.
    cover = cv2.resize(region.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
    # The region ends at the image's border too.
    full = np.pad(cover >= 0.5, 1).astype(np.uint8)
    path = _long_path(cover + cv2.distanceTransform(full, cv2.DIST_L2, 5)[1:-1, 1:-1])
    path = (path + 0.5) * (np.array(region.shape) / size) - 0.5
    # One pixel wide at each place of a disc: OpenCV draws wider lines wider than asked, more or less by its version.
    disc = np.argwhere(np.hypot(*(np.indices((width, width)) - (width - 1) / 2)) <= width / 2) - (width - 1) // 2
    lines = (np.round(path).astype(np.int32) + disc[:, None].astype(np.int32))[..., ::-1]
    line = cv2.polylines(np.zeros(region.shape, np.uint8), list(lines), False, 1) > 0
    line &= region
    if not line.any():
        # It ran between branches thinner than a cell.
        pixels = np.argwhere(region)
        line[tuple(pixels[((pixels - path[len(path) // 2]) ** 2).sum(axis=1).argmin()])] = True
    return line


def _long_path(depth: np.ndarray) -> np.ndarray:
    """(h, w) float depth of cells, 0 outside, to the (n, 2) float (y, x) along a long path through the middle.

    A step costs its length / depth, so that paths keep to the middle, and twice its length / the greatest depth, so that
    they do not bend more than that is worth. The path is the cheapest between two deep cells, where one is the
    farthest from the deepest cell of all, and the other the farthest from the first.
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
    # Of 32 bits, as the Dijkstra of SciPy 1.11 takes no others: there are a few thousand cells at most.
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
    # A moving average, its window cut to the path.
    reach = min(_SMOOTHING, len(path)) // 2
    steps = np.pad(cells[path], ((reach, reach), (0, 0)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(steps, 2 * reach + 1, axis=0).mean(axis=-1)
