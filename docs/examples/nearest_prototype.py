"""Nearest prototype by cosine in a learned space: a prototype is the mean of a support's projected features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss_svf.backbones.backbone import Backbone
from fss_svf.config import require
from fss_svf.episode import Features, Prediction
from fss_svf.methods.blocks import masked_average_pooling, resize
from fss_svf.methods.method import FewShotMethod, Rows
from fss_svf.registry import METHODS


@dataclass(frozen=True)
class NearestPrototypeOptions:
    """width: channels of the learned space. scale: of the cosine, where training starts."""

    width: int = 64
    scale: float = 10.0

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", "a whole number >= 1", self.width)


@METHODS.register("nearest_prototype", NearestPrototypeOptions)
class NearestPrototype(FewShotMethod):
    def __init__(self, backbone: Backbone, options: NearestPrototypeOptions) -> None:
        super().__init__(backbone)
        self.project = nn.Conv2d(backbone.tap("deep").channels, options.width, 1, bias=False)
        self.scale = nn.Parameter(torch.tensor(options.scale))

    def encode_query(self, images: Tensor) -> Features:
        return {"feature": self.project(self.backbone(images, ("deep",))["deep"])}  # (B, width, h, w)

    def encode_support(self, images: Tensor, masks: Tensor) -> Features:
        return self._prototypes(self.encode_query(images)["feature"], masks)

    def segment(self, query: Features, support: Features, size: tuple[int, int]) -> Prediction:
        prototypes = F.normalize(support["prototypes"].mean(1), dim=-1)  # over K shots: (B, 2, width)
        cosine = torch.einsum("bchw,bnc->bnhw", F.normalize(query["feature"], dim=1), prototypes)
        return Prediction(resize(self.scale * cosine, size))

    def encode_both(
        self, images: Tensor, query_rows: Rows, support_rows: Rows, masks: Tensor
    ) -> tuple[Features, Features]:
        feature = self.encode_query(images)["feature"]
        return {"feature": feature[query_rows]}, self._prototypes(feature[support_rows], masks)

    def _prototypes(self, feature: Tensor, masks: Tensor) -> Features:
        # 255 belongs to neither background nor object.
        weights = [resize((masks == value).float().unsqueeze(1), feature.shape[-2:]) for value in (0, 1)]
        return {"prototypes": torch.stack([masked_average_pooling(feature, w) for w in weights], dim=1)}
