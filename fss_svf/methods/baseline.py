"""SVF's own baseline: prototype, prior mask and query feature merged, ASPP, a small residual head.

Source: Singular Value Fine-tuning (arXiv 2206.06122), section 4.1, and the behaviour of its aspp.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fss_svf.backbones.backbone import Backbone
from fss_svf.config import require
from fss_svf.episode import Code, Episode, Prediction
from fss_svf.methods.blocks import (
    ASPP,
    ResidualPair,
    classifier,
    conv_relu,
    foreground,
    masked_average_pooling,
    prior_mask,
    resize,
)
from fss_svf.methods.method import FewShotMethod, flat_supports, regroup
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
class Baseline(FewShotMethod):
    def __init__(self, backbone: Backbone, options: BaselineOptions) -> None:
        super().__init__(backbone)
        width = options.width
        mid = backbone.channels["layer2"] + backbone.channels["layer3"]
        self.down_query = nn.Sequential(*conv_relu(mid, width), nn.Dropout2d(0.5))
        self.down_support = nn.Sequential(*conv_relu(mid, width), nn.Dropout2d(0.5))
        self.merge = conv_relu(2 * width + 1, width)
        self.aspp = ASPP(width)
        self.reduce = conv_relu(5 * width, width)
        self.residual = ResidualPair(width)
        self.classifier = classifier(width)
        self.shots_reduce = options.shots_reduce
        self.down_query.requires_grad_(options.down_query_trains)

    def encode_query(self, images: Tensor) -> Code:
        stages = self.backbone(images, last="layer3")
        return self._query_code(stages["layer2"], stages["layer3"], self.backbone.layer4(stages["layer3"]))

    def encode_support(self, images: Tensor, masks: Tensor) -> Code:
        stages = self.backbone(images, last="layer3")
        mask = foreground(masks)
        deep = self.backbone.layer4(stages["layer3"] * resize(mask, stages["layer3"].shape[-2:]))
        return self._support_code(stages["layer2"], stages["layer3"], deep, mask)

    def forward(self, episode: Episode) -> Prediction:
        # Queries and supports together: one pass through the backbone.
        images, masks = flat_supports(episode)
        b = len(episode.query_image)
        stages = self.backbone(torch.cat([episode.query_image, images]), last="layer3")
        middle, high = stages["layer2"], stages["layer3"]
        mask = foreground(masks)
        masked = high[b:] * resize(mask, high.shape[-2:])
        deep = self.backbone.layer4(torch.cat([high[:b], masked]))
        query = self._query_code(middle[:b], high[:b], deep[:b])
        support = self._support_code(middle[b:], high[b:], deep[b:], mask)
        return self.segment(query, regroup(support, episode.shot), episode.size)

    def _query_code(self, middle: Tensor, high: Tensor, deep: Tensor) -> Code:
        return {"feature": self.down_query(_concatenate(high, middle)), "deep": deep}

    def _support_code(self, middle: Tensor, high: Tensor, deep: Tensor, mask: Tensor) -> Code:
        feature = self.down_support(_concatenate(high, middle))
        prototype = masked_average_pooling(feature, resize(mask, feature.shape[-2:]))
        return {"prototype": prototype, "deep": deep * resize(mask, deep.shape[-2:])}

    def segment(self, query: Code, support: Code, size: tuple[int, int]) -> Prediction:
        feature = query["feature"]
        prior = self._over_shots(resize_shots(prior_mask(query["deep"], support["deep"]), feature.shape[-2:]))
        prototype = self._over_shots(support["prototype"])[:, :, None, None].expand_as(feature)
        x = self.merge(torch.cat([feature, prototype, prior.to(feature.dtype)], dim=1))
        x = self.residual(self.reduce(self.aspp(x)))
        return Prediction(resize(self.classifier(x), size))

    def _over_shots(self, values: Tensor) -> Tensor:
        """(B, K, ...) to (B, ...). The official code sums prototypes and priors over the shots."""
        return values.sum(1) if self.shots_reduce == "sum" else values.mean(1)


def _concatenate(high: Tensor, middle: Tensor) -> Tensor:
    """layer3 and layer2 at layer3's size: the mid-level feature of PFENet and its heirs."""
    return torch.cat([high, resize(middle, high.shape[-2:])], dim=1)


def resize_shots(x: Tensor, size: torch.Size) -> Tensor:
    """Bilinear resize of (B, K, C, h, w)."""
    return resize(x.flatten(0, 1), size).unflatten(0, x.shape[:2])
