"""mIoU and FB-IoU from integer counts.

mIoU: per class the sum of intersections over the sum of unions of all its episodes, then the mean over classes.
FB-IoU: foreground, of any class, and background of all episodes pooled, then the mean of the two IoUs.
Base classes: labels of many classes at once, by confusion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fss_svf.episode import IGNORE


@dataclass(frozen=True)
class EpisodeCount:
    """The pixel counts of one episode.

    classes              of the ways that are counted for their class
    intersection, union  one a class, in their order
    foreground           intersection and union of the foreground, which is any way's class
    counted              pixels of the mask that are not 255
    """

    classes: tuple[int, ...]
    intersection: tuple[int, ...]
    union: tuple[int, ...]
    foreground: tuple[int, int]
    counted: int

    @property
    def background(self) -> tuple[int, int]:
        """Intersection and union of the background."""
        both, either = self.foreground
        return self.counted - either, self.counted - both


def count_episode(classes: Mapping[int, int], prediction: Tensor, mask: Tensor) -> EpisodeCount:
    """Count one episode of N classes: (H, W) prediction in 0..N against (H, W) mask in {0..N, 255}.

    `classes`: the class of each way that is counted for its class; of the others only what is foreground counts.
    """
    valid = mask != IGNORE
    pairs = [_overlap((prediction == way) & valid, mask == way) for way in classes]
    return EpisodeCount(
        classes=tuple(classes.values()),
        intersection=tuple(both for both, _ in pairs),
        union=tuple(either for _, either in pairs),
        foreground=_overlap((prediction > 0) & valid, (mask > 0) & valid),
        counted=int(valid.sum()),
    )


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

    def add(self, episode: EpisodeCount) -> None:
        for class_id, both, either in zip(episode.classes, episode.intersection, episode.union):
            self.intersection[class_id] += both
            self.union[class_id] += either
            self.episodes[class_id] += 1
        self.foreground += torch.tensor(episode.foreground)
        self.background += torch.tensor(episode.background)

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


@dataclass(frozen=True)
class LabelCount:
    """The pixel counts of one labelling with many classes: of each class its intersection and union."""

    classes: tuple[int, ...]
    intersection: tuple[int, ...]
    union: tuple[int, ...]


def count_labels(predicted: Tensor, label: Tensor, classes: Sequence[int]) -> LabelCount:
    """Count (H, W) labels 0..n-1, or 255 (not counted) in `label`; `classes`: the number of each, distinct."""
    confusion = confusion_matrix(predicted, label, len(classes))
    either = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return LabelCount(tuple(classes), tuple(confusion.diagonal().tolist()), tuple(either.tolist()))


class LabelCounts:
    """Sums of LabelCount, in int64, by the dataset's class numbers.

    intersection, union  (C + 1,) pixels by class number; 0 is the background
    """

    def __init__(self, num_classes: int) -> None:
        self.intersection = torch.zeros(num_classes + 1, dtype=torch.int64)
        self.union = torch.zeros(num_classes + 1, dtype=torch.int64)

    def add(self, labelling: LabelCount) -> None:
        classes = torch.tensor(labelling.classes)
        self.intersection[classes] += torch.tensor(labelling.intersection)
        self.union[classes] += torch.tensor(labelling.union)

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
