"""SVF's own baseline: prototype, prior mask and query feature merged, ASPP, a small residual head.

Source: Singular Value Fine-tuning (arXiv 2206.06122), section 4.1, and the behaviour of its aspp.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fss_svf.backbones.backbone import Backbone
from fss_svf.config import require
from fss_svf.episode import Features, Prediction
from fss_svf.methods.blocks import logits_at
from fss_svf.methods.prior_guided import PriorASPP
from fss_svf.registry import METHODS


@dataclass(frozen=True)
class BaselineOptions:
    """width: channels of the head. What the others do to the numbers stands in conf/method/baseline.yaml."""

    width: int = 256
    shots_reduce: Literal["sum", "mean"] = "sum"
    down_query_trains: bool = False

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", "a whole number >= 1", self.width)


@METHODS.register("baseline", BaselineOptions)
class Baseline(PriorASPP):
    def __init__(self, backbone: Backbone, options: BaselineOptions) -> None:
        super().__init__(backbone, options.width)
        self.shots_reduce = options.shots_reduce
        self.down_query.requires_grad_(options.down_query_trains)

    def segment(self, query: Features, support: Features, size: tuple[int, int]) -> Prediction:
        support = self.compared_with(query, support)
        prototype, prior = (self._over_shots(support[key]) for key in ("prototype", "prior"))
        logits = self.logits(query["feature"], prototype, prior)
        return Prediction(logits_at(logits, size))

    def _over_shots(self, values: Tensor) -> Tensor:
        """(B, K, ...) to (B, ...). The official code sums prototypes and priors over the shots."""
        return values.mean(1) if "mean" in (self.shots_reduce, self.shots) else values.sum(1)
