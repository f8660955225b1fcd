"""PFENet: prior mask and feature enrichment over a pyramid of sizes.

Source: Prior Guided Feature Enrichment Network (arXiv 2008.01449), sections 3.2 and 3.3, and the behaviour of its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss_svf.backbones.backbone import Backbone
from fss_svf.config import require
from fss_svf.episode import Episode, Features, Prediction
from fss_svf.methods.blocks import ResidualPair, classifier, conv_relu, logits_at, resize
from fss_svf.methods.method import cross_entropy
from fss_svf.methods.prior_guided import PriorGuided, merged, once
from fss_svf.registry import METHODS


@dataclass(frozen=True)
class PFENetOptions:
    """width: channels of the head. bins: sizes of the pyramid, in cells a side; as ratios of the feature's height up to 1.

    auxiliary_weight: of the mean cross-entropy of the pyramid's own outputs.
    """

    width: int = 256
    bins: tuple[float, ...] = (60, 30, 15, 8)
    auxiliary_weight: float = 1.0

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", "a whole number >= 1", self.width)
        require(bool(self.bins) and all(b > 0 for b in self.bins), "bins", "numbers above 0", self.bins)
        require(self.auxiliary_weight >= 0, "auxiliary_weight", "a number >= 0", self.auxiliary_weight)


@METHODS.register("pfenet", PFENetOptions)
class PFENet(PriorGuided):
    """K shots: the mean of prototypes and of priors, so that any K can be evaluated."""

    def __init__(self, backbone: Backbone, options: PFENetOptions) -> None:
        super().__init__(backbone, options.width)
        width, n = options.width, len(options.bins)
        self.bins, self.auxiliary_weight = options.bins, options.auxiliary_weight
        self.merge = nn.ModuleList(conv_relu(2 * width + 1, width) for _ in range(n))
        self.across = nn.ModuleList(conv_relu(2 * width, width) for _ in range(n - 1))
        self.within = nn.ModuleList(ResidualPair(width) for _ in range(n))
        self.auxiliary = nn.ModuleList(classifier(width) for _ in range(n))
        self.reduce = conv_relu(n * width, width)
        self.residual = ResidualPair(width)
        self.classifier = classifier(width)

    def segment(self, query: Features, support: Features, size: tuple[int, int]) -> Prediction:
        """In training, aux["bins"] holds the pyramid's own logits (B, bins, 2, H, W)."""
        support = self.compared_with(query, support)
        feature, prototype = query["feature"], support["prototype"].mean(1)
        prior = support["prior"].mean(1).to(feature.dtype)
        whole = feature.shape[-2:]
        reduced: list[Tensor] = []
        auxiliary: list[Tensor] = []
        x = None
        for i, bin in enumerate(self.bins):
            # Cells beyond the feature's own size repeat it: small images are pooled upwards, as in the official code.
            cells = max(1, int(whole[0] * bin)) if bin <= 1 else int(bin)
            pooled = (
                feature if (cells, cells) == whole else once(partial(F.adaptive_avg_pool2d, output_size=cells), feature)
            )
            finer, x = x, merged(self.merge[i], pooled, prototype, resize(prior, pooled.shape[-2:]))
            if finer is not None:
                # By way of the feature's size, as in the official code.
                x = x + self.across[i - 1](torch.cat([x, resize(resize(finer, whole), x.shape[-2:])], dim=1))
            x = self.within[i](x)
            if self.training:
                auxiliary.append(logits_at(self.auxiliary[i](x), size))
            reduced.append(self._reduced(i, x, whole))
        logits = self.classifier(self.residual(F.relu(torch.stack(reduced).sum(0), inplace=True)))
        return Prediction(logits_at(logits, size), {"bins": torch.stack(auxiliary, dim=1)} if auxiliary else {})

    def _reduced(self, i: int, x: Tensor, size: Sequence[int]) -> Tensor:
        """What `reduce`, a 1x1 convolution of all bins at `size`, makes of the i-th: before a resize to more positions."""
        part = self.reduce[0].weight.chunk(len(self.bins), dim=1)[i]  # type: ignore[operator]
        return resize(F.conv2d(x if x.shape[-1] <= size[-1] else resize(x, size), part), size)

    def losses(self, prediction: Prediction, episode: Episode) -> dict[str, Tensor]:
        """main, and of a prediction made in training auxiliary: the mean over bins, weighted."""
        terms = super().losses(prediction, episode)
        if "bins" in prediction.aux:
            bins = [cross_entropy(logits, episode.query_mask) for logits in prediction.aux["bins"].unbind(1)]
            terms["auxiliary"] = self.auxiliary_weight * torch.stack(bins).mean()
        return terms
