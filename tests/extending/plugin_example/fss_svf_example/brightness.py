"""method=brightness: a pixel is the object's where its brightness is nearer to that of the supports' objects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fss_svf.backbones.backbone import Backbone
from fss_svf.episode import Features, Prediction
from fss_svf.methods.method import FewShotMethod
from fss_svf.registry import METHODS


@dataclass(frozen=True)
class BrightnessOptions:
    """start: of the weight that trains."""

    start: float


@METHODS.register("brightness", BrightnessOptions)
class Brightness(FewShotMethod):
    def __init__(self, backbone: Backbone, options: BrightnessOptions) -> None:
        super().__init__(backbone)
        self.weight = nn.Parameter(torch.full((), options.start))

    def encode_query(self, images: Tensor) -> Features:
        return {"brightness": images.mean(1)}

    def encode_support(self, images: Tensor, masks: Tensor) -> Features:
        masked = [
            ((masks == value) * images.mean(1)).sum((1, 2)) / ((masks == value).sum((1, 2)) + 1) for value in (0, 1)
        ]
        return {"means": torch.stack(masked, 1)}  # (M, 2)

    def segment(self, query: Features, support: Features, size: tuple[int, int]) -> Prediction:
        means = support["means"].mean(1)[:, :, None, None]
        return Prediction(-self.weight * (query["brightness"][:, None] - means).abs())
