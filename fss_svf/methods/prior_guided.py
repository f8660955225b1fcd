"""What the baseline, PFENet and BAM share: mid-level features, prototypes and the prior of the deepest stage.

Source: PFENet (arXiv 2008.01449), sections 3.2 and 4.1; SVF's baseline and BAM keep its encoding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss_svf.backbones.backbone import Backbone
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
    without_empty,
)
from fss_svf.methods.method import FewShotMethod, Rows, flat_supports, regroup

# The outputs of a backbone's stages by name, for B images.
Stages = dict[str, Tensor]


class PriorGuided(FewShotMethod):
    """Encodes for a subclass's `segment`.

    query code    feature (B, width, h, w); deep (B, C4, h4, w4)
    support code  prototype (M, width); deep (M, C4, h4, w4), the object alone; kept of one: (1, C4, m), its m positions
    comparison    prior (B, K, 1, h, w) in [0, 1]
    """

    compared: tuple[str, ...] = ("deep",)

    def __init__(self, backbone: Backbone, width: int) -> None:
        super().__init__(backbone)
        mid = backbone.channels["layer2"] + backbone.channels["layer3"]
        self.down_query = nn.Sequential(*conv_relu(mid, width), nn.Dropout2d(0.5))
        self.down_support = nn.Sequential(*conv_relu(mid, width), nn.Dropout2d(0.5))

    def encode_query(self, images: Tensor) -> Code:
        stages = self.backbone(images, last="layer3")
        return self.query_code(images, {**stages, "layer4": self.backbone.layer4(stages["layer3"])})

    def encode_support(self, images: Tensor, masks: Tensor) -> Code:
        stages, mask = self.backbone(images, last="layer3"), foreground(masks)
        return self.support_code({**stages, "layer4": self.backbone.layer4(_masked(stages["layer3"], mask))}, mask)

    def encode_both(self, images: Tensor, queries: Rows, owners: Rows, masks: Tensor) -> tuple[Code, Code]:
        stages, mask = self.backbone(images, last="layer3"), foreground(masks)
        of_queries, of_supports = ({name: x[rows] for name, x in stages.items()} for rows in (queries, owners))
        high = torch.cat([of_queries["layer3"], _masked(of_supports["layer3"], mask)])
        of_queries["layer4"], of_supports["layer4"] = self.backbone.layer4(high).split(
            [len(high) - len(mask), len(mask)]
        )
        return self.query_code(images[queries], of_queries), self.support_code(of_supports, mask)

    def kept(self, support: Code) -> Code:
        # Where there is no object the comparison needs one position for all, as the similarity there is 0.
        return {**support, "deep": without_empty(support["deep"].flatten(2))}

    def compare(self, query: Code, support: Code) -> Code:
        priors = prior_mask(query["deep"], support["deep"])
        size = query["feature"].shape[-2:]
        return {"prior": resize(priors.flatten(0, 1), size).unflatten(0, priors.shape[:2])}

    def encode(self, episode: Episode) -> tuple[Code, Code]:
        """Both codes, the supports' regrouped to (B, K, ...), in one backbone pass over queries and supports."""
        images, masks = flat_supports(episode)
        b = len(episode.query_image)
        together = torch.cat([episode.query_image, images])
        query, support = self.encode_both(together, slice(b), slice(b, None), masks)
        return query, regroup(support, episode.shot)

    def forward(self, episode: Episode) -> Prediction:
        return self.segment(*self.encode(episode), episode.size)

    def query_code(self, images: Tensor, stages: Stages) -> Code:
        """The code of query images from their stages."""
        return {"feature": self.down_query(mid_feature(stages)), "deep": stages["layer4"]}

    def support_code(self, stages: Stages, mask: Tensor) -> Code:
        """The code of supports from their stages (layer4 of the masked layer3) and masks (M, 1, H, W)."""
        feature = self.down_support(mid_feature(stages))
        prototype = masked_average_pooling(feature, resize(mask, feature.shape[-2:]))
        return {"prototype": prototype, "deep": _masked(stages["layer4"], mask)}

    def compared_with(self, query: Code, support: Code) -> Code:
        """The supports' code and what compare says of them."""
        return support if "prior" in support else {**support, **self.compare(query, support)}


class PriorASPP(PriorGuided):
    """The head of SVF's baseline, which is BAM's meta learner too."""

    def __init__(self, backbone: Backbone, width: int) -> None:
        super().__init__(backbone, width)
        self.merge = conv_relu(2 * width + 1, width)
        self.aspp = ASPP(width)
        self.reduce = conv_relu(5 * width, width)
        self.residual = ResidualPair(width)
        self.classifier = classifier(width)

    def logits(self, feature: Tensor, prototype: Tensor, prior: Tensor) -> Tensor:
        """(B, width, h, w), (B, width) and (B, 1, h, w) to logits (B, 2, h, w)."""
        x = merged(self.merge, feature, prototype, prior)
        return self.classifier(self.residual(self.reduce(self.aspp(x))))


def merged(layer: nn.Module, feature: Tensor, prototype: Tensor, prior: Tensor) -> Tensor:
    """`layer`, a 1x1 conv_relu, of feature (B, width, h, w), prototype (B, width) at every position, and prior (B, 1, h, w).

    Part by part instead of a convolution of the three stacked: a prototype is the same everywhere, and a feature that
    `expand` made of a single row, as an evaluation has it for a query, is convolved once.
    """
    conv = layer.get_submodule("0")
    assert isinstance(conv, nn.Conv2d)
    width = feature.shape[1]
    of_feature, of_prototype, of_prior = conv.weight.split([width, width, 1], dim=1)
    x = once(lambda row: F.conv2d(row, of_feature), feature)
    shift = F.linear(prototype, of_prototype.flatten(1))
    # Products of one channel: a convolution would only move memory.
    return F.relu(
        x + of_prior.to(x.dtype).view(1, -1, 1, 1) * prior.to(x.dtype) + shift[:, :, None, None], inplace=True
    )


def once(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) of a batch, of which an `expand` of a single row is worked on once."""
    if len(x) > 1 and x.stride(0) == 0:
        return function(x[:1]).expand(len(x), *(-1,) * (x.dim() - 1))
    return function(x)


def mid_feature(stages: Stages) -> Tensor:
    """layer3 and layer2 at layer3's size (VGG16's is coarser): the mid-level feature of PFENet and its heirs."""
    return torch.cat([stages["layer3"], low_feature(stages)], dim=1)


def low_feature(stages: Stages) -> Tensor:
    """layer2 at layer3's size."""
    return resize(stages["layer2"], stages["layer3"].shape[-2:])


def _masked(features: Tensor, mask: Tensor) -> Tensor:
    return features * resize(mask, features.shape[-2:])
