"""An object cut out by a few points, with OpenCV's GrabCut."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

_LONGER = 500  # pixels of the longer side at which to cut: the network sees no finer, and GrabCut is slow
_SEED = 0.012  # radius of a point's disc, of the longer side: large enough for GrabCut's five colours
_ROUNDS = 6

Point = Sequence[float]


def cut_out(
    image: np.ndarray,
    points: Sequence[Point],
    background: Sequence[Point] = (),
    boxes: Sequence[Sequence[float]] = (),
) -> np.ndarray:
    """(H, W, 3) uint8 RGB to (H, W) uint8 in {0, 1}: the object that `points` (x, y) lie on and `background` does not.

    boxes: (x0, y0, x1, y1); where there are some, all outside them is background. What has no connection with a point is
    left out. Always the same for the same arguments.

    Source: Rother, Kolmogorov and Blake, "GrabCut" (SIGGRAPH 2004), as cv2.grabCut.
    """
    height, width = image.shape[:2]
    scale = min(1.0, _LONGER / max(height, width))
    small = cv2.resize(
        image, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )
    seeds = np.full(small.shape[:2], cv2.GC_PR_BGD, np.uint8)
    if boxes:
        seeds[:] = cv2.GC_BGD
        for box in boxes:
            x0, y0, x1, y1 = (round(value * scale) for value in box)
            seeds[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = cv2.GC_PR_FGD
    radius = max(3, round(_SEED * max(small.shape)))
    for spots, value in ((background, cv2.GC_BGD), (points, cv2.GC_FGD)):
        for x, y in spots:
            cv2.circle(seeds, (int(x * scale), int(y * scale)), radius, value, cv2.FILLED)
    chosen = (seeds == cv2.GC_FGD).astype(np.uint8)
    cv2.setRNGSeed(0)  # GrabCut groups colours from a random start
    if (seeds != cv2.GC_FGD).any():  # of an image the size of a point nothing is to be cut
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(cv2.cvtColor(small, cv2.COLOR_RGB2BGR), seeds, None, *models, _ROUNDS, cv2.GC_INIT_WITH_MASK)
    inside = np.isin(seeds, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    _, parts = cv2.connectedComponents(inside, connectivity=4)
    inside = np.isin(parts, np.unique(parts[chosen == 1])).astype(np.uint8)
    # Bilinear and cut at one half, so that the outline has no steps.
    smooth = cv2.resize(inside.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return (smooth >= 0.5).astype(np.uint8)
