"""What a method that also segments base classes (BAM) says of them: their mIoU, and base and novel classes together.

Source: BAM (CVPR 2022), its base mIoU and its section on generalized few-shot segmentation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from fss_svf.config import Protocol
from fss_svf.data.loading import EvalBatch
from fss_svf.episode import Prediction
from fss_svf.errors import ConfigError
from fss_svf.evaluation.at_label import at_label
from fss_svf.evaluation.counts import LabelCounts
from fss_svf.methods.method import FewShotMethod


class BaseClassCounts:
    """Counts of Prediction.aux["base"] on the base classes of every query and, with `threshold`, of both fusions.

    A fusion labels every pixel as background, a base class or the episode's novel class. Novel is where the softmax of
    the method's logits is above `threshold` (0.9 in the official code). "final": novel wins, base fills what is left;
    "base": base wins, novel fills. Pixels of other novel classes count as background.
    """

    def __init__(self, num_classes: int, base: Sequence[int], threshold: float | None) -> None:
        """`base`: the dataset's numbers of the base classes, ascending."""
        self.base, self.threshold = tuple(base), threshold
        self.alone = LabelCounts(num_classes)
        self.fused = {} if threshold is None else {scheme: LabelCounts(num_classes) for scheme in ("final", "base")}

    def update(self, prediction: Prediction, batch: EvalBatch, protocol: Protocol) -> None:
        """Count a batch, in the size and place of the protocol's label."""
        assert batch.original_base is not None
        assert batch.episode.base_mask is not None
        assert batch.episode.query_mask is not None
        classes = torch.tensor([0, *self.base])
        novel = len(classes)  # the number of the episode's own class among the labels
        said = [logits.argmax(0).cpu() for logits in at_label(prediction.aux["base"], batch, protocol)]
        original = protocol.label == "original"
        labels = batch.original_base if original else list(batch.episode.base_mask)
        masks = batch.original_masks if original else list(batch.episode.query_mask)
        for base, label in zip(said, labels):
            self.alone.update(base, label, classes)
        if self.threshold is None:
            return
        for i, logits in enumerate(at_label(prediction.logits, batch, protocol)):
            found = (logits.softmax(0)[1] > self.threshold).cpu()
            label = torch.where(masks[i] == 1, novel, labels[i])
            ids = torch.cat([classes, batch.episode.class_id[i : i + 1]])  # type: ignore[index]
            self.fused["final"].update(torch.where(found, novel, said[i]), label, ids)
            self.fused["base"].update(torch.where(said[i] > 0, said[i], found * novel), label, ids)

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
