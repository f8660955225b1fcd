"""Pixel counts, and the package's one definition of IoU, mIoU and FB-IoU.

Counts are int64 pixels of intersection and union, (..., 2). They add up: no order of episodes, batches or processes
changes a digit. They are made on the model's device as tensors, and kept, summed and scored on the host as arrays.

mIoU: per class the sum of intersections over the sum of unions of all its episodes, then the mean over classes.
FB-IoU: background and foreground, of any class, of all episodes pooled, then the mean of the two IoUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fss_svf.episode import IGNORE

# Rows of an episode's counts: both of all classes together, then a row a class.
BACKGROUND, FOREGROUND, CLASSES = 0, 1, 2


def count_masks(predicted: Tensor, truth: Tensor, ways: int = 1) -> Tensor:
    """Count B episodes of one query: predicted (B, H, W) in 0..N, truth (H, W) in {0..N, 255}, N = ways.

    int64 (B, 2 + N, 2): background, foreground, and each way.
    """
    valid = truth != IGNORE
    predicted = torch.where(valid, predicted, IGNORE)
    pairs = [(predicted == way, truth == way) for way in range(1, ways + 1)]
    foreground = pairs[0] if ways == 1 else ((predicted > 0) & valid, (truth > 0) & valid)
    counts = [_overlap(*pair) for pair in pairs]
    both, either = (counts[0] if ways == 1 else _overlap(*foreground)).unbind(1)
    counted = valid.sum()
    background = torch.stack([counted - either, counted - both], dim=1)
    return torch.stack([background, torch.stack([both, either], dim=1), *counts], dim=1)


def count_true(truth: Tensor, ways: int = 1) -> Tensor:
    """int64 (N,): pixels of each way in truth (H, W), {0..N, 255}."""
    return torch.stack([(truth == way).sum() for way in range(1, ways + 1)])


def _overlap(predicted: Tensor, true: Tensor) -> Tensor:
    """Bool masks (B, H, W) and (H, W) to pixels of intersection and union, (B, 2)."""
    both = (predicted & true).sum((1, 2))
    return torch.stack([both, predicted.sum((1, 2)) + true.sum() - both], dim=1)


def count_labels(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count B labellings with many classes: predicted (B, H, W) in 0..classes - 1, labels (H, W) or alike, or 255.

    int64 (B, classes, 2), of each class.
    """
    labels = labels.expand_as(predicted).long()
    # Pixels by label and prediction, of which those that do not count are put into a cell of their own.
    cells = torch.where(labels == IGNORE, classes * classes, labels * classes + predicted.long()).flatten(1)
    confusion = cells.new_zeros(len(cells), classes * classes + 1)
    confusion.scatter_add_(1, cells, cells.new_ones(1).expand_as(cells))
    confusion = confusion[:, :-1].unflatten(1, (classes, classes))
    both = confusion.diagonal(dim1=1, dim2=2)
    return torch.stack([both, confusion.sum(1) + confusion.sum(2) - both], dim=2)


def count_classes(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """What count_masks gives for N = classes, of however many: predicted (B, H, W) in 0..N, truth (H, W) in {0..N, 255}.

    int64 (B, 2 + N, 2): background, foreground, and each class.
    """
    background, of_classes = count_labels(predicted, truth, 1 + classes).split([1, classes], dim=1)
    valid = truth != IGNORE
    foreground = _overlap((predicted > 0) & valid, (truth > 0) & valid)
    return torch.cat([background, foreground[:, None], of_classes], dim=1)


def iou(counts: np.ndarray) -> np.ndarray:
    """(..., 2) pixels of intersection and union to IoU, float64 (...), NaN without a union."""
    intersection, union = counts[..., 0], counts[..., 1]
    return np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)


def mean_iou(values: np.ndarray) -> np.ndarray:
    """(..., C) IoU to the mean (...) of those that are not NaN; 0 where nothing was counted."""
    present = ~np.isnan(values)
    return np.nan_to_num(values).sum(-1) / np.maximum(present.sum(-1), 1)


def class_iou(counts: np.ndarray, zero: bool = False) -> np.ndarray:
    """IoU (..., C) of classes from their counts (..., C, 2).

    A class without a union is NaN and no part of the mean; with `zero` it counts as 0 (as in PFENet, BAM and SVF).
    """
    return np.nan_to_num(iou(counts)) if zero else iou(counts)


@dataclass(frozen=True, eq=False)
class Scores:
    """Fractions in float64, of R evaluations or resamples of one.

    miou, fb_iou  (R,)
    per_class     (R, C), NaN where a class has no union
    """

    miou: np.ndarray
    fb_iou: np.ndarray
    per_class: np.ndarray

    def __sub__(self, other: Scores) -> Scores:
        return Scores(self.miou - other.miou, self.fb_iou - other.fb_iou, self.per_class - other.per_class)

    def numbers(self) -> dict[str, float]:
        """miou and fb_iou of the first evaluation."""
        return {"miou": float(self.miou[0]), "fb_iou": float(self.fb_iou[0])}

    def miou_of(self, columns: Sequence[int]) -> np.ndarray:
        """(R,): the mean of these columns of per_class; 0 where none of them was measured."""
        return mean_iou(self.per_class[:, columns])


def scores(counts: np.ndarray, zero: bool) -> Scores:
    """The scores of counts (R, 2 + C, 2), each a sum over episodes. `zero`: see class_iou."""
    per_class = class_iou(counts[:, CLASSES:], zero)
    return Scores(mean_iou(per_class), mean_iou(iou(counts[:, :CLASSES])), per_class)


def mean_scores(runs: Sequence[Scores]) -> Scores:
    """The mean over seeds, or trainings; a class's over those that have one."""
    per_class = np.stack([run.per_class for run in runs])
    over_runs = np.where(np.isnan(per_class).all(0), np.nan, mean_iou(np.moveaxis(per_class, 0, -1)))
    return Scores(np.mean([r.miou for r in runs], axis=0), np.mean([r.fb_iou for r in runs], axis=0), over_runs)
