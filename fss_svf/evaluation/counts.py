"""mIoU and FB-IoU from integer counts.

mIoU: per class the sum of intersections over the sum of unions of all its episodes, then the mean over classes.
FB-IoU: foreground, of any class, and background of all episodes pooled, then the mean of the two IoUs.
Base classes: labels of many classes at once, by confusion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fss_svf.episode import IGNORE


class Counts:
    """Pixel counts by class, in int64: no order of episodes, batches or processes changes a digit.

    intersection, union     (C + 1,) pixels by class number
    foreground, background  (2,) intersection and union over all episodes; foreground is any class
    episodes                (C + 1,) episodes by class number
    """

    def __init__(self, num_classes: int) -> None:
        self.intersection = torch.zeros(num_classes + 1, dtype=torch.int64)
        self.union = torch.zeros(num_classes + 1, dtype=torch.int64)
        self.foreground = torch.zeros(2, dtype=torch.int64)
        self.background = torch.zeros(2, dtype=torch.int64)
        self.episodes = torch.zeros(num_classes + 1, dtype=torch.int64)

    def update(self, class_id: int, prediction: Tensor, mask: Tensor) -> tuple[int, int]:
        """Count one episode: (H, W) bool prediction against (H, W) mask in {0, 1, 255}, where 255 does not count.

        Returns the episode's own intersection and union of the foreground.
        """
        return self.update_ways({1: class_id}, prediction, mask)

    def update_ways(self, classes: Mapping[int, int], prediction: Tensor, mask: Tensor) -> tuple[int, int]:
        """Count one episode of N classes: (H, W) prediction in 0..N against (H, W) mask in {0..N, 255}.

        `classes`: the class of each way that is counted for its class; of the others only what is foreground counts.
        Returns the episode's own intersection and union of the foreground.
        """
        valid = mask != IGNORE
        for way, class_id in classes.items():
            both, either = _overlap((prediction == way) & valid, mask == way)
            self.intersection[class_id] += both
            self.union[class_id] += either
            self.episodes[class_id] += 1
        both, either = _overlap((prediction > 0) & valid, (mask > 0) & valid)
        counted = int(valid.sum())
        self.foreground += torch.tensor([both, either])
        self.background += torch.tensor([counted - either, counted - both])
        return both, either

    def per_class(self, zero: Iterable[int] = ()) -> dict[int, float]:
        """IoU, a fraction, of every class that was drawn and has a union.

        Others are left out; those in `zero` count as 0 (as in PFENet, BAM and SVF).
        """
        found = ((self.episodes > 0) & (self.union > 0)).nonzero().flatten().tolist()
        return {**dict.fromkeys(zero, 0.0), **{c: int(self.intersection[c]) / int(self.union[c]) for c in found}}

    def miou(self, zero: Iterable[int] = ()) -> float:
        """Mean of per_class(zero), a fraction; 0 when nothing was counted."""
        values = list(self.per_class(zero).values())
        return sum(values) / len(values) if values else 0.0

    def fb_iou(self) -> float:
        """Mean of the pooled foreground and background IoU, a fraction; a part without a union is left out."""
        pairs = (self.foreground.tolist(), self.background.tolist())
        values = [intersection / union for intersection, union in pairs if union]
        return sum(values) / len(values) if values else 0.0


def _overlap(said: Tensor, true: Tensor) -> tuple[int, int]:
    """Pixels of the intersection and of the union of two bool masks."""
    return int((said & true).sum()), int((said | true).sum())


class LabelCounts:
    """Pixel counts of labellings with many classes, in int64, by the dataset's class numbers.

    intersection, union  (C + 1,) pixels by class number; 0 is the background
    """

    def __init__(self, num_classes: int) -> None:
        self.intersection = torch.zeros(num_classes + 1, dtype=torch.int64)
        self.union = torch.zeros(num_classes + 1, dtype=torch.int64)

    def update(self, predicted: Tensor, label: Tensor, classes: Tensor) -> None:
        """Count (H, W) labels 0..n-1, or 255 (not counted) in `label`; `classes`: (n,) the number of each, distinct."""
        confusion = confusion_matrix(predicted, label, len(classes))
        self.intersection[classes] += confusion.diagonal()
        self.union[classes] += confusion.sum(0) + confusion.sum(1) - confusion.diagonal()

    def miou(self, classes: Iterable[int], zero: bool = False) -> float:
        """Mean IoU of `classes`, a fraction. A class without a union is left out, or counts as 0; 0 when none is left."""
        pairs = [(int(self.intersection[c]), int(self.union[c])) for c in classes]
        values = [both / max(either, 1) for both, either in pairs if either or zero]
        return sum(values) / len(values) if values else 0.0


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64 pixels by label and prediction; label 255 does not count."""
    valid = labels != IGNORE
    cells = labels[valid].long() * classes + predicted[valid]
    return torch.bincount(cells, minlength=classes * classes).view(classes, classes)


def class_iou(confusion: Tensor) -> Tensor:
    """(classes,) float64 intersection over union; NaN for a class neither labelled nor predicted."""
    intersection = confusion.diagonal().double()
    return intersection / (confusion.sum(0) + confusion.sum(1) - confusion.diagonal())
