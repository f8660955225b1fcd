"""What is evaluated, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from fss_svf.config import FeaturesDtype, Precision, Protocol
from fss_svf.data.augment import EvalTransform
from fss_svf.data.dataset import Split, SupportAnnotation
from fss_svf.evaluation.ways import ChosenRule
from fss_svf.methods.base_classes import further_predictions
from fss_svf.methods.method import FewShotMethod


@dataclass(frozen=True)
class EvaluationTask:
    """What is evaluated.

    classes  the dataset's numbers of the classes that are measured: the novel ones, ascending; with protocol.classes=all the
             base ones before them
    base     those of the base classes, where the model's base learner is measured
    way_rule how several classes become one mask; None for one class
    """

    model: FewShotMethod
    split: Split
    annotation: SupportAnnotation
    transform: EvalTransform
    protocol: Protocol
    classes: tuple[int, ...]
    base: tuple[int, ...] | None = None
    way_rule: ChosenRule | None = None

    @property
    def further(self) -> tuple[str, ...]:
        """The names of what is measured beside the prediction, on the same classes."""
        if self.protocol.classes == "novel":
            return further_predictions(self.model)
        return () if self.base is None else ("base first",)


@dataclass(frozen=True)
class EngineOptions:
    """How it is run: what changes speed and memory, and numbers only by float order (precision, features_dtype: more).

    batch_size      images encoded, pairs compared on a GPU, and episodes segmented, at a time
    workers         loader processes
    cache_gb        host memory for features, in 10^9 bytes; what goes over it waits in `folder`
    precision       of precision.py
    features_dtype  in which features are stored; None: as they are computed
    """

    device: torch.device
    batch_size: int
    workers: int
    cache_gb: float
    folder: Path
    precision: Precision = "float32"
    features_dtype: FeaturesDtype | None = None
