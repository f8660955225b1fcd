"""A matcher that trains nothing: patches of a frozen network that match the supports', completed by clusters.

Source: INSID3 (CVPR 2026, arXiv 2603.28480), rebuilt from a description of what it computes. It has no parameters beside
the backbone's, and draws nothing at random.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fss_svf.backbones.backbone import Backbone
from fss_svf.config import require
from fss_svf.episode import Features, Prediction
from fss_svf.errors import ConfigError
from fss_svf.methods.blocks import at_least_float32
from fss_svf.methods.clusters import cluster
from fss_svf.methods.method import FewShotMethod, Rows
from fss_svf.methods.positional import PositionalBasis
from fss_svf.methods.read_taps import require_tap
from fss_svf.precision import in_float32
from fss_svf.registry import METHODS

NORM = "norm"
# The paper's 500 directions are of 1,024 channels.
SHARE = 500 / 1024
# Where no patch is similar to the prototype, this share of them is taken for less similar than the others.
QUANTILE = 0.9


@dataclass(frozen=True)
class MatcherOptions:
    """tap: the role or tap whose map is matched; null: a ViT's last map after its final norm, of others the deep one.

    debias           take the directions of position out of the features
    svd_components   how many; below the tap's channels
    tau              cosine above which clusters are merged
    merge_threshold  score above which a cluster is part of the object
    """

    tap: str | None = None
    debias: bool = True
    svd_components: int = 500
    tau: float = 0.6
    merge_threshold: float = 0.2

    def __post_init__(self) -> None:
        require(self.svd_components >= 1, "svd_components", "a whole number >= 1", self.svd_components)
        require(-1 < self.tau < 1, "tau", "a cosine between -1 and 1", self.tau)
        require(self.merge_threshold >= 0, "merge_threshold", "a number >= 0", self.merge_threshold)


@dataclass(frozen=True)
class Match:
    """What is decided of B queries of h x w patches in up to M clusters each.

    forward     (B, h, w)  cosine with the prototype
    candidates  (B, h, w)  bool: patches that match the supports, both ways
    seed        (B,)       the cluster that is most like the prototype, of those with a candidate
    likeness    (B,)       of the seed to the prototype, in [0, 1]
    cross, intra, area, combined  (B, M) each cluster's similarity to the prototype and to the seed, its share of
                candidates, and their product
    patches     (B, h, w)  bool: the object
    """

    forward: Tensor
    candidates: Tensor
    seed: Tensor
    likeness: Tensor
    cross: Tensor
    intra: Tensor
    area: Tensor
    combined: Tensor
    patches: Tensor


@METHODS.register("matcher", MatcherOptions)
class Matcher(FewShotMethod):
    """Any number of shots, whose prototypes are averaged: protocol.shots=mean changes nothing.

    query features    feature (B, C, h, w), debiased; labels (B, h, w) of clusters; means, debiased_means (B, M, C) of each
    support features  prototype (M, C); feature (M, C, h, w), debiased; patches (M, h, w) bool, those of the object
    comparison        votes (B, K, h, w) bool: patches whose most similar patch of the support is of the object
    """

    trainable = False
    differentiable = False  # every decision is a threshold or a maximum
    compared = ("feature", "patches")

    def __init__(self, backbone: Backbone, options: MatcherOptions) -> None:
        super().__init__(backbone)
        self.tap = options.tap or (NORM if NORM in backbone.taps else "deep")
        channels = backbone.taps[require_tap(backbone, self.tap, "method.tap")].channels
        components = options.svd_components
        if options.debias and components >= channels:
            raise ConfigError(
                f"method.svd_components={components}: expected fewer than the {channels} channels of {self.tap}, or nothing "
                f"is left of the features; say method.svd_components={max(1, int(SHARE * channels))}, or method.debias=false"
            )
        self.components = components if options.debias else 0
        self.tau, self.merge_threshold = options.tau, options.merge_threshold
        self._basis = PositionalBasis()

    def encode_query(self, images: Tensor) -> Features:
        return self._query_features(*self._maps(images))

    def encode_support(self, images: Tensor, masks: Tensor) -> Features:
        return self._support_features(self._maps(images)[1], masks)

    def encode_both(
        self, images: Tensor, query_rows: Rows, support_rows: Rows, masks: Tensor
    ) -> tuple[Features, Features]:
        original, debiased = self._maps(images)
        query = self._query_features(original[query_rows], debiased[query_rows])
        return query, self._support_features(debiased[support_rows], masks)

    def _maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features of unit length (B, C, h, w) float32 or wider, and the same without the directions of position."""
        feature = at_least_float32(self.backbone(images, (self.tap,))[self.tap]).detach()
        with in_float32(feature.device):
            original = F.normalize(feature, dim=1)
            if not self.components:
                return original, original
            basis = self._basis(self.backbone, self.tap, images, self.components)
            flat = original.flatten(2)
            return original, F.normalize(flat - basis @ (basis.T @ flat), dim=1).view_as(original)

    def _query_features(self, original: Tensor, debiased: Tensor) -> Features:
        with in_float32(original.device):
            labels, clusters = cluster(original.flatten(2), self.tau)
            inside = members(labels, clusters, original.dtype)
            means, debiased_means = (mean_over(inside, x.flatten(2).transpose(1, 2)) for x in (original, debiased))
        places = labels.view(len(labels), *original.shape[-2:])
        return {"feature": debiased, "labels": places, "means": means, "debiased_means": debiased_means}

    def _support_features(self, debiased: Tensor, masks: Tensor) -> Features:
        patches = object_patches(masks, (debiased.shape[-2], debiased.shape[-1]))
        with in_float32(debiased.device):
            inside = patches.flatten(1).unsqueeze(1).to(debiased.dtype)
            prototype = mean_over(inside, debiased.flatten(2).transpose(1, 2)).squeeze(1)
        return {"prototype": prototype, "feature": debiased, "patches": patches}

    def compare(self, query: Features, support: Features) -> Features:
        q, s = at_least_float32(query["feature"]).flatten(2), at_least_float32(support["feature"]).flatten(3)
        with in_float32(q.device):
            nearest = (q.unsqueeze(1).transpose(2, 3) @ s).argmax(-1)  # (B, K, n)
        votes = support["patches"].flatten(2).gather(2, nearest)
        return {"votes": votes.unflatten(2, query["feature"].shape[-2:])}

    def segment(self, query: Features, support: Features, size: tuple[int, int]) -> Prediction:
        match = self.match(query, support)
        share = F.interpolate(
            match.patches.unsqueeze(1).to(match.forward.dtype), size=size, mode="bilinear", align_corners=False
        )
        # Of several classes at a pixel the one whose seed is most like its prototype has the largest logit.
        logit = torch.where(share > 0.5, 0.5, -0.5) * match.likeness.view(-1, 1, 1, 1)
        return Prediction(torch.cat([-logit, logit], dim=1))

    def match(self, query: Features, support: Features) -> Match:
        """All decisions about the patches of B queries. support: as in `segment`."""
        support = support if "votes" in support else {**support, **self.compare(query, support)}
        feature, labels = at_least_float32(query["feature"]).flatten(2), query["labels"].flatten(1)
        means, debiased_means = (at_least_float32(query[name]) for name in ("means", "debiased_means"))
        votes = support["votes"]
        with in_float32(feature.device):
            prototype = F.normalize(at_least_float32(support["prototype"]).mean(1), dim=1)
            forward = (prototype.unsqueeze(1) @ feature).squeeze(1)  # (B, n)
            similar = forward > 0
            similar = torch.where(similar.any(1, keepdim=True), similar, forward > quantile(forward, QUANTILE))
            candidates = similar & (votes.flatten(2).sum(1) >= (votes.shape[1] + 1) // 2)

            inside = members(labels, means.shape[1], feature.dtype)
            pixels = torch.stack([forward, candidates.to(feature.dtype)], dim=2)
            cross, area = mean_over(inside, pixels).unbind(2)
            to_prototype = (F.normalize(debiased_means, dim=2) @ prototype.unsqueeze(2)).squeeze(2)
            best, seed = to_prototype.masked_fill(area == 0, -torch.inf).max(1)
            is_seed = torch.arange(means.shape[1], device=seed.device) == seed.unsqueeze(1)
            unit = F.normalize(means, dim=2)
            intra = (unit @ unit.gather(1, seed.view(-1, 1, 1).expand(-1, 1, unit.shape[2])).transpose(1, 2)).squeeze(2)
            area = torch.where(is_seed, 1.0, area)
            combined = cross * intra * area
        kept = (combined > self.merge_threshold) & candidates.any(1, keepdim=True)
        places = query["labels"].shape
        return Match(
            forward=forward.view(places),
            candidates=candidates.view(places),
            seed=seed,
            likeness=(0.5 + 0.5 * best.clamp(-1, 1)),
            cross=cross,
            intra=intra,
            area=area,
            combined=combined,
            patches=kept.gather(1, labels).view(places),
        )


def object_patches(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(M, H, W) in {0, 1, 255} to (M, h, w) bool: patches that are mostly of the object.

    Where there is none, those whose middle is; of an object between them its one patch at its mean row and column. So only
    a mask without the object has no patch.
    """
    mask = (masks == 1).float().unsqueeze(1)
    h, w = size
    bilinear = F.interpolate(mask, size=size, mode="bilinear", align_corners=False)[:, 0] > 0.5
    nearest = F.interpolate(mask, size=size, mode="nearest")[:, 0] > 0.5
    weight = mask[:, 0]
    area, cell = weight.sum((1, 2)), max(1, masks.shape[2] // w)
    rows, columns = (torch.arange(n, device=mask.device, dtype=mask.dtype) for n in weight.shape[1:])
    row = ((weight.sum(2) @ rows) / area.clamp(min=1) // cell).clamp(max=h - 1)
    column = ((weight.sum(1) @ columns) / area.clamp(min=1) // cell).clamp(max=w - 1)
    places = (torch.arange(n, device=mask.device) for n in size)
    at_row, at_column = (p == x.unsqueeze(1) for p, x in zip(places, (row, column)))
    one = at_row.unsqueeze(2) & at_column.unsqueeze(1) & (area > 0)[:, None, None]
    for finer in (nearest, bilinear):
        one = torch.where(finer.flatten(1).any(1)[:, None, None], finer, one)
    return one


def quantile(x: Tensor, q: float) -> Tensor:
    """(B, n) to (B, 1): the value below which the share `q` of a row lies, linear between two of its values."""
    ranked, place = x.sort(1).values, q * (x.shape[1] - 1)
    below = int(place)
    above = min(below + 1, x.shape[1] - 1)
    return torch.lerp(ranked[:, below : below + 1], ranked[:, above : above + 1], place - below)


def members(labels: Tensor, clusters: int, dtype: torch.dtype) -> Tensor:
    """(B, n) labels to (B, clusters, n): 1 where a position is of the cluster, else 0."""
    return (labels.unsqueeze(1) == torch.arange(clusters, device=labels.device).view(-1, 1)).to(dtype)


def mean_over(inside: Tensor, values: Tensor) -> Tensor:
    """(B, M, n) of 0 and 1 and values (B, n, C) to the means (B, M, C) over those that are 1; 0 where there is none."""
    return inside @ values / inside.sum(2, keepdim=True).clamp(min=1)
