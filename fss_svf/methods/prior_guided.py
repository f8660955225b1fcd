"""What the baseline, PFENet and BAM share: mid-level features, prototypes and the prior of the deepest features.

Source: PFENet (arXiv 2008.01449), sections 3.2 and 4.1; SVF's baseline and BAM keep its encoding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss_svf.backbones.backbone import Backbone
from fss_svf.episode import Features
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
from fss_svf.methods.method import FewShotMethod, Rows, rows_of

# A backbone's maps by role, or by tap, for B images.
Maps = dict[str, Tensor]


class PriorGuided(FewShotMethod):
    """Encodes for a subclass's `segment`, of the backbone's low, mid and deep maps.

    query features    feature (B, width, h, w); deep (B, C, h', w')
    support features  prototype (M, width); deep (M, C, h', w'), the object alone; kept of one: (1, C, m), its m positions
    comparison        prior (B, K, 1, h, w) in [0, 1]

    The deep map of a support is what the backbone makes of its masked mid map, masked again, as published. A backbone that
    cannot go on from a map (Backbone.continues is false: timm's) gives that of the whole image, masked.
    """

    compared: tuple[str, ...] = ("deep",)

    def __init__(self, backbone: Backbone, width: int) -> None:
        super().__init__(backbone)
        mid = backbone.tap("low").channels + backbone.tap("mid").channels
        self.down_query = nn.Sequential(*conv_relu(mid, width), nn.Dropout2d(0.5))
        self.down_support = nn.Sequential(*conv_relu(mid, width), nn.Dropout2d(0.5))

    @property
    def further_taps(self) -> tuple[str, ...]:
        """Taps that a subclass reads beside the roles; they come before the deep one."""
        return ()

    def encode_query(self, images: Tensor) -> Features:
        maps = self._maps(images)
        if self.backbone.continues:
            maps["deep"] = self._deep_of(maps["mid"])
        return self.query_features(images, maps)

    def encode_support(self, images: Tensor, masks: Tensor) -> Features:
        maps, mask = self._maps(images), foreground(masks)
        if self.backbone.continues:
            maps["deep"] = self._deep_of(_masked(maps["mid"], mask))
        return self.support_features(maps, mask)

    def encode_both(
        self, images: Tensor, query_rows: Rows, support_rows: Rows, masks: Tensor
    ) -> tuple[Features, Features]:
        maps, mask = self._maps(images), foreground(masks)
        of_queries, of_supports = ({name: x[rows] for name, x in maps.items()} for rows in (query_rows, support_rows))
        if self.backbone.continues:
            mid = torch.cat([of_queries["mid"], _masked(of_supports["mid"], mask)])
            of_queries["deep"], of_supports["deep"] = self._deep_of(mid).split([len(mid) - len(mask), len(mask)])
        return self.query_features(images[query_rows], of_queries), self.support_features(of_supports, mask)

    def _maps(self, images: Tensor) -> Maps:
        """The maps of the roles; without the deep one where the backbone can make it of a masked map."""
        deep = () if self.backbone.continues else ("deep",)
        return self.backbone(images, ("low", "mid", *self.further_taps, *deep))

    def _deep_of(self, mid: Tensor) -> Tensor:
        return self.backbone.continue_from("mid", mid, ("deep",))["deep"]

    def kept(self, support: Features) -> list[Features]:
        # Where there is no object the comparison needs one position for all, as the similarity there is 0.
        return [{**row, "deep": without_empty(row["deep"].flatten(2))} for row in rows_of(support)]

    def compare(self, query: Features, support: Features) -> Features:
        priors = prior_mask(query["deep"], support["deep"])
        size = query["feature"].shape[-2:]
        return {"prior": resize(priors.flatten(0, 1), size).unflatten(0, priors.shape[:2])}

    def query_features(self, images: Tensor, maps: Maps) -> Features:
        """Features of query images from their maps."""
        return {"feature": self.down_query(mid_feature(maps)), "deep": maps["deep"]}

    def support_features(self, maps: Maps, mask: Tensor) -> Features:
        """Features of supports from their maps and masks (M, 1, H, W)."""
        feature = self.down_support(mid_feature(maps))
        prototype = masked_average_pooling(feature, resize(mask, feature.shape[-2:]))
        return {"prototype": prototype, "deep": _masked(maps["deep"], mask)}

    def compared_with(self, query: Features, support: Features) -> Features:
        """The supports' features and their comparison with the query."""
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


def mid_feature(maps: Maps) -> Tensor:
    """The mid and low maps at the mid one's size (VGG16's is coarser): the mid-level feature of PFENet and its heirs."""
    return torch.cat([maps["mid"], low_feature(maps)], dim=1)


def low_feature(maps: Maps) -> Tensor:
    """The low map at the mid one's size."""
    return resize(maps["low"], maps["mid"].shape[-2:])


def _masked(features: Tensor, mask: Tensor) -> Tensor:
    return features * resize(mask, features.shape[-2:])
