"""What a method that also segments base classes (BAM) says of them: their mIoU, and base and novel classes together.

Source: BAM (CVPR 2022), its base mIoU and its section on generalized few-shot segmentation.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fss_svf.config import Protocol
from fss_svf.errors import ConfigError
from fss_svf.evaluation.metric import class_iou, count_labels, mean_iou
from fss_svf.methods.base_classes import BaseClassMethod
from fss_svf.methods.method import FewShotMethod

# Which of two predictions of a pixel wins, by the names of their counts.
FUSIONS = {"final first": "generalized, final first", "base first": "generalized, base first"}


def count_fusions(novel: Tensor, base: Tensor, mask: Tensor, label: Tensor, classes: int) -> dict[str, Tensor]:
    """Count both ways to label a query as background, a base class or the novel class of each of B episodes.

    A pixel is novel where the softmax of the method's logits is above the protocol's threshold (0.9 in the official code).
    Pixels of other novel classes count as background.

    novel    (B, H, W) bool, where the novel class is predicted
    base     (H, W) the predicted base classes, 0..n
    mask     (H, W) 1 where the novel class is; label: (H, W) the base classes, in {0..n, 255}
    classes  n

    int64 (B, n + 2, 2) each: background, base classes, novel class.
    """
    true = torch.where(mask == 1, classes + 1, label)
    return {name: count_labels(labels, true, classes + 2) for name, labels in fused(novel, base, classes).items()}


def fused(novel: Tensor, base: Tensor, classes: int) -> dict[str, Tensor]:
    """Both ways to put novel classes (B, H, W), 0..N, and base ones (H, W), 0..n, into labels (B, H, W).

    They are in 0..n + N, the base classes before the novel ones; n = `classes`. "final first": novel wins, base fills what
    is left; "base first": base wins, novel fills.
    """
    shifted = torch.where(novel > 0, novel.to(torch.int64) + classes, 0)
    return {
        "final first": torch.where(shifted > 0, shifted, base),
        "base first": torch.where(base > 0, base, shifted),
    }


def base_scores(counts: Mapping[str, np.ndarray], base: int, zero: bool) -> dict[str, dict[str, float]]:
    """mIoU by what was measured, fractions. `zero`: a class without a pixel counts as 0, else it is left out.

    counts: by name, (1 + n + C, 2) of background, the n = `base` base classes and the C novel ones, summed over episodes.
    """

    def miou(name: str, start: int, stop: int | None) -> dict[str, float]:
        return {"miou": float(mean_iou(class_iou(counts[name][start:stop], zero)))}

    scores = {"base classes": miou("base", 1, 1 + base)}
    for name, title in FUSIONS.items():
        if name in counts:
            parts = {"novel": (1 + base, None), "base": (1, 1 + base), "all": (1, None)}
            scores |= {f"{title}, {part}": miou(name, *rows) for part, rows in parts.items()}
    return scores


def require_base_classes(protocol: Protocol, model: FewShotMethod, name: str, way: int | None) -> None:
    """Raise ConfigError where the protocol fuses base classes with a novel one, and the method knows novel ones alone, or
    the episodes have several."""
    if (
        protocol.novel_threshold is None or protocol.classes == "all"
    ):  # which any method does, with one threshold or another
        return
    if way != 1:
        raise ConfigError(
            f"protocol={protocol.name}: protocol.novel_threshold fuses base classes with one novel class, got way={way}; "
            "say way=1, or protocol.novel_threshold=null"
        )
    if not isinstance(model, BaseClassMethod):
        raise ConfigError(
            f"protocol={protocol.name}: method={name} segments no base classes; use method=bam, or another protocol"
        )
