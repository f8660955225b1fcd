"""What a method that also segments base classes (BAM) says of them: their mIoU, and base and novel classes together.

Source: BAM (CVPR 2022), its base mIoU and its section on generalized few-shot segmentation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fss_svf.config import Protocol
from fss_svf.errors import ConfigError
from fss_svf.evaluation.counts import LabelCount, LabelCounts, count_labels
from fss_svf.methods.method import FewShotMethod


def count_fusions(
    novel: Tensor, base: Tensor, mask: Tensor, label: Tensor, classes: Sequence[int]
) -> dict[str, LabelCount]:
    """Count both ways to label a query as background, a base class or the episode's novel class.

    "final": novel wins, base fills what is left; "base": base wins, novel fills.

    novel    (H, W) bool, where the novel class is said to be
    base     (H, W) the base classes said, 0..n
    mask     (H, W) 1 where the novel class is; label: (H, W) the base classes, in {0..n, 255}
    classes  the dataset's numbers of the n base classes and, last, of the novel one
    """
    number = len(classes)  # the novel class among the labels
    true = torch.where(mask == 1, number, label)
    said = {"final": torch.where(novel, number, base), "base": torch.where(base > 0, base, novel * number)}
    return {first: count_labels(labels, true, (0, *classes)) for first, labels in said.items()}


class BaseClassCounts:
    """Counts of the base classes in every query and, where a protocol fuses, of both fusions with the novel class.

    Novel is where the softmax of the method's logits is above the protocol's threshold (0.9 in the official code). Pixels
    of other novel classes count as background.
    """

    def __init__(self, num_classes: int, base: Sequence[int]) -> None:
        """`base`: the dataset's numbers of the base classes, ascending."""
        self.base = tuple(base)
        self.alone = LabelCounts(num_classes)
        self.fused: dict[str, LabelCounts] = {}

    def add(self, alone: LabelCount, fused: Mapping[str, LabelCount]) -> None:
        """Count an episode: its query's base classes, and its fusions by name."""
        self.alone.add(alone)
        for scheme, count in fused.items():
            self.fused.setdefault(scheme, LabelCounts(len(self.alone.union) - 1)).add(count)

    def scores(self, novel: Iterable[int], zero: bool) -> dict[str, dict[str, float]]:
        """mIoU by what was measured, fractions. `zero`: a class without a pixel counts as 0, else it is left out."""
        novel = tuple(novel)
        found = {"base classes": {"miou": self.alone.miou(self.base, zero)}}
        for scheme, counts in self.fused.items():
            for name, classes in (("novel", novel), ("base", self.base), ("all", (*self.base, *novel))):
                found[f"generalized, {scheme} first, {name}"] = {"miou": counts.miou(classes, zero)}
        return found


def require_base_classes(protocol: Protocol, model: FewShotMethod, name: str) -> None:
    """Raise ConfigError where the protocol fuses base and novel classes and the method knows novel ones alone."""
    if protocol.novel_threshold is not None and not model.segments_base:
        raise ConfigError(
            f"protocol={protocol.name}: method={name} segments no base classes; use method=bam, or another protocol"
        )
