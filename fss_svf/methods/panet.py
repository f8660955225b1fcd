"""PANet: the nearest prototype by cosine, aligned in training by segmenting the supports back from the query.

Source: PANet (ICCV 2019, arXiv 1908.06391), sections 3.3 to 3.5, and the behaviour of its official code, whose bilinear
resizes do not align corners. It has no parameters beside the backbone's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from fss_svf.backbones.backbone import Backbone
from fss_svf.backbones.weights import VGG16_BLOCKS
from fss_svf.config import require
from fss_svf.episode import IGNORE, Episode, Features, Prediction
from fss_svf.methods.blocks import at_least_float32
from fss_svf.methods.method import FewShotMethod, Rows
from fss_svf.precision import in_float32
from fss_svf.registry import METHODS

SCALE = 20.0  # of the cosine (the paper's alpha)
AREA_EPS = 1e-5
COSINE_EPS = 1e-8  # least norm, as in torch's cosine_similarity


@dataclass(frozen=True)
class PANetOptions:
    """align_weight: of the alignment loss beside the segmentation loss; 0 leaves it out."""

    align_weight: float = 1.0

    def __post_init__(self) -> None:
        require(self.align_weight >= 0, "align_weight", "a number >= 0", self.align_weight)


@METHODS.register("panet", PANetOptions)
class PANet(FewShotMethod):
    """Features are the backbone's deep map. Any number of ways and shots."""

    # A backbone as it is, such as an official checkpoint's, can be evaluated.
    trainable = False
    many_ways = True
    means_over = MappingProxyType({"align": "episodes"})

    def __init__(self, backbone: Backbone, options: PANetOptions) -> None:
        super().__init__(backbone)
        self.align_weight = options.align_weight

    def encode_query(self, images: Tensor) -> Features:
        return {"feature": self.backbone(images, ("deep",))["deep"]}

    def encode_support(self, images: Tensor, masks: Tensor) -> Features:
        return self._support_features(self.backbone(images, ("deep",))["deep"], masks)

    def encode_both(
        self, images: Tensor, query_rows: Rows, support_rows: Rows, masks: Tensor
    ) -> tuple[Features, Features]:
        feature = self.backbone(images, ("deep",))["deep"]
        return {"feature": feature[query_rows]}, self._support_features(feature[support_rows], masks)

    def _support_features(self, feature: Tensor, masks: Tensor) -> Features:
        features = {"prototypes": masked_means(feature, masks)}
        # Only the alignment loss looks at a support again.
        return {**features, "feature": feature} if self.training and self.align_weight else features

    def segment(self, query: Features, support: Features, size: tuple[int, int]) -> Prediction:
        if support["prototypes"].dim() == 4:  # (B, K, 2, C): one way
            support = {name: value.unsqueeze(1) for name, value in support.items()}
        background, foreground = support["prototypes"].mean(2).unbind(2)  # over shots: (B, N, C) each
        scores = cosine_scores(query["feature"], torch.cat([background.mean(1, keepdim=True), foreground], dim=1))
        aux = {}
        if "feature" in support:
            aux = {"scores": scores, "query_feature": query["feature"], "support_feature": support["feature"]}
        return Prediction(upsample(scores, size), aux)

    def losses(self, prediction: Prediction, episode: Episode) -> dict[str, Tensor]:
        """Cross-entropy of the logits; in training the alignment loss beside it."""
        terms = super().losses(prediction, episode)
        aux = prediction.aux
        if "support_feature" in aux:
            masks = episode.support_masks
            masks = masks.reshape(-1, episode.way, episode.shot, *masks.shape[-2:])
            align = alignment_loss(aux["scores"], aux["query_feature"], aux["support_feature"], masks)
            terms["align"] = self.align_weight * align
        return terms


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of (M, n, h, w) without aligned corners."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def masked_means(features: Tensor, masks: Tensor) -> Tensor:
    """(M, C, h, w) and (M, H, W) in {0, 1, 255} to (M, 2, C): background and foreground prototype of each support.

    The paper's mean over the features at the mask's size: sum(up(f) * m) / (sum(m) + 1e-5); 255 belongs to neither.
    An empty mask gives zeros.
    """
    # bfloat16 has three digits: too few for an area, or for 20 times a cosine.
    # sum(up(f) * m) = sum(f * up^T(m)): the mask is small, the features at its size would take 0.4 GB an image.
    with in_float32(features.device):
        chosen = torch.stack([masks == 0, masks == 1], dim=1).to(at_least_float32(features).dtype)  # (M, 2, H, W)
        rows, columns = (_interpolation(n, to, chosen) for n, to in zip(features.shape[-2:], masks.shape[-2:]))
        return _means(features, rows @ chosen @ columns.T, chosen.sum((2, 3)))


def _interpolation(n: int, to: int, like: Tensor) -> Tensor:
    """(n, to): column j holds the weights of n values in the j-th of `to` linearly interpolated ones."""
    values = torch.eye(n, dtype=like.dtype, device=like.device)
    return F.interpolate(values[None], size=to, mode="linear", align_corners=False)[0]


def _means(features: Tensor, weights: Tensor, area: Tensor) -> Tensor:
    """(M, C, h, w), (M, n, h, w) and (M, n) to (M, n, C): sum(features * weights) / (area + 1e-5)."""
    with in_float32(features.device):
        sums = torch.einsum("mchw,mnhw->mnc", features.to(weights.dtype), weights)
        return sums / (area + AREA_EPS).unsqueeze(-1)


def cosine_scores(features: Tensor, prototypes: Tensor) -> Tensor:
    """(M, C, h, w) and (M, n, C) to (M, n, h, w): 20 times the cosine of every position with every prototype."""
    with in_float32(features.device):
        prototypes = at_least_float32(prototypes)
        positions = F.normalize(features.to(prototypes.dtype), dim=1, eps=COSINE_EPS)
        return SCALE * torch.einsum("mchw,mnc->mnhw", positions, F.normalize(prototypes, dim=-1, eps=COSINE_EPS))


def alignment_loss(scores: Tensor, query: Tensor, support: Tensor, masks: Tensor) -> Tensor:
    """The paper's L_PAR: supports segmented by prototypes of the query, whose mask is what was predicted of it.

    scores (B, 1 + N, h, w), query (B, C, h, w), support (B, N, K, C, h, w), masks (B, N, K, H, W) in {0, 1, 255}.
    Mean over episodes, ways and shots; a way without a predicted pixel counts as 0, as does a mask of 255 alone.
    """
    ways, shots = masks.shape[1:3]
    predicted = F.one_hot(scores.argmax(1), 1 + ways).movedim(-1, 1).to(scores.dtype)  # (B, 1 + N, h, w)
    area = predicted.sum((2, 3))  # (B, 1 + N)
    prototypes = _means(query, predicted, area)
    pairs = torch.stack([prototypes[:, :1].expand_as(prototypes[:, 1:]), prototypes[:, 1:]], dim=2)  # (B, N, 2, C)
    pairs = pairs.unsqueeze(2).expand(-1, -1, shots, -1, -1)
    labels = masks.flatten(0, 2).long()
    logits = upsample(cosine_scores(support.flatten(0, 2), pairs.flatten(0, 2)), (labels.shape[1], labels.shape[2]))
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").sum((1, 2))
    loss = loss / (labels != IGNORE).sum((1, 2)).clamp(min=1)
    return (loss.view(masks.shape[:3]) * (area[:, 1:] > 0).unsqueeze(-1)).mean()


def name_here(official: str) -> str:
    """A parameter's name in an official checkpoint to its name in PANet(vgg16_plain); an unknown one stays as it is.

    'module.encoder.backbone.features.2.0.weight' is 'backbone.layer1.5.weight'.
    """
    found = re.match(r"(?:module\.)?encoder\.backbone\.features\.([02468])\.([024])\.(weight|bias)$", official)
    if not found:
        return official
    block, layer = int(found[1]) // 2, int(found[2])
    return f"backbone.layer{block}.{VGG16_BLOCKS[block] + layer}.{found[3]}"
