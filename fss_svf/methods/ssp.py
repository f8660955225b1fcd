"""SSP: prototypes of the supports find sure parts of the query, whose own prototypes then segment it.

Source: Self-Support Few-Shot Semantic Segmentation (ECCV 2022, arXiv 2207.11549), and the behaviour of its code, which
refines once more. It has no parameters beside the backbone's.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from fss_svf.backbones.backbone import Backbone
from fss_svf.episode import Episode, Features, Prediction
from fss_svf.methods.blocks import at_least_float32, logits_at, resize
from fss_svf.methods.method import FewShotMethod, Rows, cross_entropy
from fss_svf.methods.read_taps import freeze_unread, require_tap, sums_of
from fss_svf.precision import in_float32
from fss_svf.registry import METHODS

SCALE = 10.0  # of the cosine
ATTENTION = 2.0  # of the cosine inside the attention
AREA_EPS, NORM_EPS = 1e-5, 1e-8
# Probabilities above which a position is sure; where none is, so many of the largest are taken.
SURE_BACKGROUND, SURE_FOREGROUND, LEAST = 0.6, 0.7, 12
SUPPORT_WEIGHT = 0.2


@dataclass(frozen=True)
class SSPOptions:
    """tap: the role or tap whose map is matched; of a role, what its last block has before its ReLU, where there is one.

    refine: whether the query's own prototypes are looked for a second time.
    """

    tap: str = "mid"
    refine: bool = True


@METHODS.register("ssp", SSPOptions)
class SSP(FewShotMethod):
    """Any number of shots, whose prototypes are averaged. Of N ways each has a foreground prototype, and the softmax that
    says which positions are sure is over all of them and one background; of one way that is the paper's.

    query features    feature (B, C, h, w)
    support features  prototypes (M, 2, C), background and foreground; in training self (M, 2, h, w), a support's scores by
                      its own prototypes
    """

    # A backbone as it is can be evaluated.
    trainable = False
    many_ways = True
    means_over = MappingProxyType({"support_self": "support_masks"})

    def __init__(self, backbone: Backbone, options: SSPOptions) -> None:
        super().__init__(backbone)
        tap = require_tap(backbone, options.tap, "method.tap")
        if options.tap in backbone.roles:
            tap = [tap, *sums_of(backbone, tap)][-1]
        self.tap, self.refine = tap, options.refine
        freeze_unread(backbone, [tap])

    def encode_query(self, images: Tensor) -> Features:
        return {"feature": self._feature(images)}

    def encode_support(self, images: Tensor, masks: Tensor) -> Features:
        return self._support_features(self._feature(images), masks)

    def encode_both(
        self, images: Tensor, query_rows: Rows, support_rows: Rows, masks: Tensor
    ) -> tuple[Features, Features]:
        feature = self._feature(images)
        return {"feature": feature[query_rows]}, self._support_features(feature[support_rows], masks)

    def _feature(self, images: Tensor) -> Tensor:
        return self.backbone(images, (self.tap,))[self.tap]

    def _support_features(self, feature: Tensor, masks: Tensor) -> Features:
        prototypes = own_prototypes(feature, masks)
        if not self.training:
            return {"prototypes": prototypes}
        return {"prototypes": prototypes, "self": scores_of(feature, prototypes)}

    def segment(self, query: Features, support: Features, size: tuple[int, int]) -> Prediction:
        """In training, aux holds what the further terms of the loss look at: plain (the logits before refinement), feature
        and self."""
        feature, prototypes = query["feature"], support["prototypes"]
        if prototypes.dim() == 4:  # (B, K, 2, C): one way
            prototypes = prototypes.unsqueeze(1)
        background, foreground = prototypes.mean(2).unbind(2)  # over shots: (B, N, C) each
        given = torch.cat([background.mean(1, keepdim=True), foreground], dim=1)
        steps = [step.unflatten(2, feature.shape[-2:]) for step in matched(feature.flatten(2), given, self.refine)]
        logits = [logits_at(step, size) for step in (steps if self.training else steps[-1:])]
        if not self.training:
            return Prediction(logits[-1])
        aux = {"plain": logits[0]} if self.refine else {}
        return Prediction(logits[-1], {**aux, "feature": feature, "self": support["self"]})

    def losses(self, prediction: Prediction, episode: Episode) -> dict[str, Tensor]:
        """Cross-entropy of the logits; in training also of those before refinement, and of queries and supports segmented
        by their own prototypes, the supports' times 0.2."""
        terms = super().losses(prediction, episode)
        aux, mask = prediction.aux, episode.query_mask
        if "self" not in aux:
            return terms
        assert mask is not None
        if "plain" in aux:
            terms["plain"] = cross_entropy(aux["plain"], mask)
        own = scores_of(aux["feature"], own_prototypes(aux["feature"], mask, episode.way))
        terms["query_self"] = cross_entropy(logits_at(own, episode.size), mask)
        supports, masks = aux["self"].flatten(0, -4), episode.support_masks.flatten(0, -3)
        of_supports = cross_entropy(logits_at(supports, masks.shape[-2:]), masks)
        return {**terms, "support_self": SUPPORT_WEIGHT * of_supports}


def own_prototypes(features: Tensor, masks: Tensor, ways: int = 1) -> Tensor:
    """(M, C, h, w) and (M, H, W) in {0..ways, 255} to (M, 1 + ways, C): mean features by a mask that is resized.

    sum(f * m) / (sum(m) + 1e-5); 255 belongs to none. An empty mask gives zeros.
    """
    with in_float32(features.device):
        features = at_least_float32(features)
        chosen = torch.stack([masks == value for value in range(1 + ways)], dim=1).to(features.dtype)
        chosen = resize(chosen, features.shape[-2:])
        return torch.einsum("mchw,mnhw->mnc", features, chosen) / (chosen.sum((2, 3)) + AREA_EPS).unsqueeze(-1)


def scores_of(features: Tensor, prototypes: Tensor) -> Tensor:
    """(M, C, ...) and (M, n, C) to (M, n, ...): 10 times the cosine of every position with every prototype."""
    with in_float32(features.device):
        positions = _unit(at_least_float32(features))
        return SCALE * torch.einsum("mc...,mnc->mn...", positions, F.normalize(prototypes, dim=-1, eps=NORM_EPS))


def matched(features: Tensor, given: Tensor, refine: bool) -> list[Tensor]:
    """Scores (B, 1 + N, n) of n positions (B, C, n) by the paper's self-support from given prototypes (B, 1 + N, C).

    Returns one step, or two where they are refined.
    """
    # All rows are one query's, as an evaluation has it: `expand` made them of a single one.
    one_query = len(features) > 1 and features.stride(0) == 0
    with in_float32(features.device):
        features, given = at_least_float32(features), at_least_float32(given)
        unit, foreground = _unit(features), given[:, 1:]
        attention = _attention(unit[0] if one_query else unit)
        by_given = SCALE * torch.einsum("bcn,bmc->bmn", unit, F.normalize(given, dim=-1, eps=NORM_EPS))
        around, of_objects = _own(features, attention, foreground, by_given)
        first = _scores(unit, around, of_objects)
        if not refine:
            return [first]
        around2, of_objects2 = _own(features, attention, foreground, first)
        around = 0.5 * given[:, 0].unsqueeze(2) + 0.2 * around + 0.3 * around2
        of_objects = 0.5 * foreground + 0.2 * of_objects + 0.3 * of_objects2
        return [first, 0.7 * _scores(unit, around, of_objects) + 0.3 * first]


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features, dim=1, eps=NORM_EPS)


def _scores(unit: Tensor, around: Tensor, of_objects: Tensor) -> Tensor:
    """Of a background prototype at every position (B, C, n), and those of the objects (B, N, C)."""
    background = (unit * _unit(around)).sum(1, keepdim=True)
    objects = torch.einsum("bcn,bmc->bmn", unit, F.normalize(of_objects, dim=-1, eps=NORM_EPS))
    return SCALE * torch.cat([background, objects], dim=1)


def _attention(unit: Tensor) -> Tensor:
    """exp(2 cosine) of every position with every other: (..., C, n) to (..., n, n). A softmax over any set of positions is a
    part of it over its sum."""
    return (ATTENTION * unit.transpose(-1, -2) @ unit).exp()


def _own(features: Tensor, attention: Tensor, foreground: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The query's prototypes by the positions that are sure in `scores`: background (B, C, n) at every position, adapted to
    it by attention over the sure ones, and foreground (B, N, C), together with the given one."""
    sure = sure_positions(scores)  # (B, 1 + N, n)
    means = torch.einsum("bcn,bmn->bmc", features, sure) / sure.sum(2).unsqueeze(2)
    background = sure[:, :1]
    # The attention is symmetric: what multiplies it from the left is summed over the sure positions of each column.
    adapted = (features * background) @ attention / (background @ attention)
    return 0.3 * means[:, 0].unsqueeze(2) + 0.7 * adapted, 0.5 * foreground + 0.5 * means[:, 1:]


def sure_positions(scores: Tensor) -> Tensor:
    """(B, 1 + N, n) scores to 1 at the positions that are surely of a class, else 0: those whose probability is above the
    threshold, or, where none is, the 12 of the largest. Nothing is read on the host, and no gradient passes the choice."""
    probability = scores.detach().softmax(1)
    over = torch.cat([probability[:, :1] > SURE_BACKGROUND, probability[:, 1:] > SURE_FOREGROUND], dim=1)
    largest = probability.topk(min(LEAST, probability.shape[2]), dim=2).indices
    taken = torch.zeros_like(over).scatter(2, largest, True)
    return torch.where(over.any(2, keepdim=True), over, taken).to(scores.dtype)
