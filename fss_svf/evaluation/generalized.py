"""The numbers of a labelling with base and novel classes at once: a mean IoU of each kind, and what joins the two.

Source: DIaM (CVPR 2023), which prints the mean of both; the harmonic mean is that of generalized zero-shot segmentation.
Background is in neither.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fss_svf.evaluation.metric import Scores

# Beside miou, the mean of base and novel mIoU, and fb_iou.
PARTS = ("base_miou", "novel_miou", "harmonic_mean")


def generalized(scores: Scores, base: int) -> Scores:
    """The same scores, with the mean of base and novel mIoU as miou. base: of the classes, how many are base: the first."""
    base_miou, novel_miou = _mious(scores, base)
    return replace(scores, miou=(base_miou + novel_miou) / 2)


def parts(scores: Scores, base: int) -> dict[str, np.ndarray]:
    """(R,) each of PARTS."""
    base_miou, novel_miou = _mious(scores, base)
    total = base_miou + novel_miou
    harmonic = np.divide(2 * base_miou * novel_miou, total, out=np.zeros_like(total), where=total > 0)
    return dict(zip(PARTS, (base_miou, novel_miou, harmonic)))


def _mious(scores: Scores, base: int) -> tuple[np.ndarray, np.ndarray]:
    classes = range(scores.per_class.shape[1])
    return scores.miou_of(classes[:base]), scores.miou_of(classes[base:])
