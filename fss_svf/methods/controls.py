"""Two controls without a trained parameter: what a table's other rows must beat to say anything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fss_svf.backbones.backbone import Backbone
from fss_svf.episode import Features, Prediction
from fss_svf.methods.blocks import at_least_float32, logits_at, resize
from fss_svf.methods.method import FewShotMethod
from fss_svf.methods.read_taps import require_tap
from fss_svf.precision import in_float32
from fss_svf.registry import METHODS

CONTROLS = ("background", "prototype")


@dataclass(frozen=True)
class BackgroundOptions:
    """No options."""


@METHODS.register("background", BackgroundOptions)
class Background(FewShotMethod):
    """Says background everywhere: mIoU 0, and the FB-IoU that an empty answer already earns."""

    trainable = False
    differentiable = False

    def __init__(self, backbone: Backbone, options: BackgroundOptions) -> None:
        super().__init__(backbone)

    def encode_query(self, images: Tensor) -> Features:
        return {"rows": images[:, 0, :1, :1]}

    def encode_support(self, images: Tensor, masks: Tensor) -> Features:
        return {"rows": images[:, 0, :1, :1]}

    def segment(self, query: Features, support: Features, size: tuple[int, int]) -> Prediction:
        logits = query["rows"].new_zeros(len(query["rows"]), 2, *size)
        logits[:, 0] = 1
        return Prediction(logits)


@dataclass(frozen=True)
class PrototypeOptions:
    """stage: the role (low, mid, deep) or tap of the backbone whose features are matched."""

    stage: str = "mid"


@METHODS.register("prototype", PrototypeOptions)
class Prototype(FewShotMethod):
    """Nearest prototype by cosine: masked means of the supports' foreground and background features (PANet's matcher).

    Prototypes are averaged over shots. Nothing trains; the number is that of the backbone's features alone.
    """

    trainable = False

    def __init__(self, backbone: Backbone, options: PrototypeOptions) -> None:
        super().__init__(backbone)
        require_tap(backbone, options.stage, "method.stage")
        self.stage = options.stage

    def encode_query(self, images: Tensor) -> Features:
        return {"feature": self.backbone(images, (self.stage,))[self.stage]}

    def encode_support(self, images: Tensor, masks: Tensor) -> Features:
        feature = self.backbone(images, (self.stage,))[self.stage]
        means = []
        with in_float32(feature.device):
            feature = at_least_float32(feature)
            for value in (0, 1):
                weight = resize((masks == value).float().unsqueeze(1), feature.shape[-2:])
                means.append((feature * weight).sum((2, 3)) / (weight.sum((2, 3)) + 1e-5))
        return {"prototypes": torch.stack(means, dim=1)}  # (M, 2, C)

    def segment(self, query: Features, support: Features, size: tuple[int, int]) -> Prediction:
        feature = at_least_float32(query["feature"])
        with in_float32(feature.device):
            prototypes = F.normalize(support["prototypes"].mean(1), dim=-1)
            similarity = torch.einsum("bchw,bnc->bnhw", F.normalize(feature, dim=1), prototypes)
        return Prediction(logits_at(similarity, size))
