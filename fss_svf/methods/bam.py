"""BAM: a meta learner corrected by a base learner that knows what the base classes look like.

Source: Learning What Not to Segment (CVPR 2022, arXiv 2203.07615), sections 4.2 to 4.4, and the behaviour of its code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fss_svf.backbones.backbone import Backbone
from fss_svf.backbones.weights import origin, state_digest
from fss_svf.checkpoint import load_checkpoint
from fss_svf.config import FoldNumber, require, to_mapping
from fss_svf.episode import Episode, Features, Outputs, Prediction
from fss_svf.errors import ConfigError, WeightsError
from fss_svf.methods.base_classes import BaseClassMethod
from fss_svf.methods.base_learner import BaseBranch
from fss_svf.methods.blocks import at_least_float32, gram_distance, gram_matrix, logits_at
from fss_svf.methods.method import cross_entropy
from fss_svf.methods.prior_guided import Maps, PriorASPP, low_feature
from fss_svf.precision import in_float32
from fss_svf.registry import METHODS, Choice


@dataclass(frozen=True)
class BAMOptions:
    """width: channels of the meta learner.

    shot             K of the training; above 1 it is the shape of the layer that weights the shots
    other_shots      at another K > 1: error, or the plain mean of the shots (not in the paper)
    kshot_trans_dim  hidden channels of that layer; 0: a single K x K layer without bias, started at 1 / K
    base_learner     a run folder or checkpoint of 'fss-svf pretrain'; None: random, for tests and for loading
    base_classes     of a random base learner; a checkpoint brings its own
    """

    width: int = 256
    shot: int = 1
    other_shots: Literal["error", "mean"] = "error"
    kshot_trans_dim: int = 2
    base_learner: Path | None = None
    base_classes: int = 15

    def __post_init__(self) -> None:
        for key in ("width", "shot", "base_classes"):
            require(getattr(self, key) >= 1, key, "a whole number >= 1", getattr(self, key))
        require(self.kshot_trans_dim >= 0, "kshot_trans_dim", "a whole number >= 0", self.kshot_trans_dim)


@METHODS.register("bam", BAMOptions)
class BAM(PriorASPP, BaseClassMethod):
    """Adds to the features: gram (C2, C2) of the low feature; of queries base, the base learner's logits.

    Adds to the comparison: distance (B, K), how unlike the scenes are.
    """

    means_over = MappingProxyType({"base": "base_mask"})
    further_predictions = ("meta",)
    compared = ("deep", "gram")
    evaluation_options = ("other_shots",)
    held_out: Tensor

    def __init__(self, backbone: Backbone, options: BAMOptions) -> None:
        super().__init__(backbone, options.width)
        self.shot, self.other_shots = options.shot, options.other_shots
        if self.shot > 1:
            self.kshot = _kshot_layer(self.shot, options.kshot_trans_dim)
        # 1x1 convolutions that start by passing on their first channel, the meta learner's.
        self.gram_merge, self.cls_merge = _merge_layer(), _merge_layer()
        self.base = BaseBranch(backbone, options.base_classes)
        self.base_learner = options.base_learner
        # Its numbers are no part of a checkpoint, and so are on the CPU also where one is restored on the meta device.
        self.register_buffer("held_out", torch.zeros(0, dtype=torch.int64, device="cpu"), persistent=False)
        if options.base_learner is not None:
            self._load_base_learner(load_checkpoint(options.base_learner, "pretrain"))

    def forward(self, episode: Episode) -> Prediction:
        query, support = self.encode(episode)
        if self.training:
            if episode.base_class is None:
                raise ValueError(
                    "BAM trains on episodes with base_class and base_mask; TrainEpisodes(..., base=CLASS_NUMBERS) makes them"
                )
            query["base_class"] = episode.base_class
        return self.segment(query, support, episode.size)

    @property
    def further_taps(self) -> tuple[str, ...]:
        start = self.base.start(self.backbone)
        return () if start in (None, "deep") else (start,)

    def query_features(self, images: Tensor, maps: Maps) -> Features:
        features = super().query_features(images, maps)
        return {**features, "gram": gram_matrix(low_feature(maps)), "base": self.base(self.backbone, images, maps)}

    def support_features(self, maps: Maps, mask: Tensor) -> Features:
        return {**super().support_features(maps, mask), "gram": gram_matrix(low_feature(maps))}

    def compare(self, query: Features, support: Features) -> Features:
        return {**super().compare(query, support), "distance": gram_distance(query["gram"], support["gram"])}

    def segment_base(self, query: Features, size: tuple[int, int]) -> Tensor:
        return logits_at(query["base"], size)

    def segment(self, query: Features, support: Features, size: tuple[int, int]) -> Prediction:
        """Logits are the ensemble's probabilities (no softmax follows); aux: logits of meta (B, 2, H, W), and of base."""
        support = self.compared_with(query, support)
        distance = support["distance"]
        with in_float32(distance.device):
            weight = self._shot_weights(distance)
            prototype = torch.einsum("bk,bkc->bc", weight, support["prototype"])
            prior = torch.einsum("bk,bkchw->bchw", weight, support["prior"])
        meta = self.logits(query["feature"], prototype, prior)
        with in_float32(distance.device):
            final = self._ensemble(meta, query["base"], (weight * distance).sum(1), query.get("base_class"))
        outputs = {"meta": lambda: logits_at(meta, size), "base": lambda: self.segment_base(query, size)}
        return Prediction(logits_at(final, size), Outputs(outputs))

    def losses(self, prediction: Prediction, episode: Episode) -> dict[str, Tensor]:
        """main is the cross-entropy of probabilities taken for logits, as published; base moves nothing."""
        terms = super().losses(prediction, episode)
        terms["meta"] = cross_entropy(prediction.aux["meta"], episode.query_mask)
        if episode.base_mask is not None:
            terms["base"] = cross_entropy(prediction.aux["base"], episode.base_mask)
        return terms

    def _shot_weights(self, distance: Tensor) -> Tensor:
        """(B, K) distances to weights that sum to 1. The layer sees them in ascending order, so shots have no order."""
        shots = distance.shape[1]
        self.check_shot(shots)
        if self.shots == "mean" or shots != self.shot or shots == 1:
            return torch.full_like(distance, 1 / shots)
        ascending, order = distance.sort(dim=1)
        scores = self.kshot(ascending[:, :, None, None]).flatten(1)
        return scores.gather(1, order.argsort(dim=1)).softmax(dim=1)

    def _ensemble(self, meta: Tensor, base: Tensor, distance: Tensor, base_class: Tensor | None) -> Tensor:
        """Logits (B, 2, h, w) and (B, n + 1, h', w'), distances (B,) to (B, 2, h, w).

        base_class: (B,) of each episode in training, whose channel does not count against it; None: an evaluation, in
        which the held-out classes' channels do not count.
        """
        # The base learner reads the deep map, which is coarser than the mid one in a network that is not dilated.
        meta, base = at_least_float32(meta).softmax(1), logits_at(base, meta.shape[-2:]).softmax(1)
        channels = torch.arange(base.shape[1], device=base.device)
        silent = torch.isin(channels, self.held_out) if base_class is None else channels == base_class[:, None]
        against = (channels > 0) & ~silent
        base_map = (base * against.to(base.dtype).view(-1, len(channels), 1, 1)).sum(1, keepdim=True)
        distance = distance.view(-1, 1, 1, 1).expand_as(base_map)
        background, object_ = (self.gram_merge(torch.cat([m, distance], dim=1)) for m in meta.split(1, dim=1))
        background = self.cls_merge(torch.cat([background, base_map], dim=1))
        return torch.cat([background, object_], dim=1)

    # What depends on the run and on weights

    def check_shot(self, shot: int) -> None:
        if shot not in (1, self.shot) and "mean" not in (self.other_shots, self.shots):
            raise ConfigError(
                f"shot={shot}: this BAM was trained at {self.shot} shot{'s' * (self.shot > 1)} and has no weights for "
                f"{shot}; train it with shot={shot}, or take the plain mean of the shots: +method.other_shots=mean"
            )

    def hold_out(self, base_classes: Sequence[int]) -> None:
        self.held_out = torch.tensor(list(base_classes), dtype=torch.int64, device=self.held_out.device)

    def check_run(self, dataset: str, fold: FoldNumber, classes: Sequence[str], backbone: Choice) -> None:
        if self.base_learner is None:
            raise ConfigError(
                f"method.base_learner: null; BAM needs the base learner of this fold: fss-svf pretrain dataset={dataset} "
                f"fold={fold} backbone={backbone.name}, then method.base_learner=ITS_RUN_FOLDER"
            )
        assert self.trained_on is not None
        # A base learner from before an option has its default.
        defaults = {f.name: f.default for f in fields(backbone.options)}
        theirs, ours = {**to_mapping(defaults), **self._base_backbone}, to_mapping(backbone)
        options = [f"backbone.{k}={theirs.get(k)}" for k in ours if k != "weights" and ours[k] != theirs.get(k)]
        wrong = {
            f"dataset={self.trained_on['dataset']}": self.trained_on["dataset"] != dataset,
            f"fold={self.trained_on['fold']}": self.trained_on["fold"] != fold,
            f"backbone={theirs['name']}": theirs["name"] != backbone.name,
            ", ".join(options): bool(options),
            "other base classes": list(self.trained_on["classes"][: self.base.classes]) != list(classes),
        }
        found = next((what for what, is_wrong in wrong.items() if is_wrong), None)
        if found is not None:
            raise WeightsError(
                f"method.base_learner={self.base_learner}: made with {found}, which is not this run's; pretrain one for "
                f"dataset={dataset} fold={fold} backbone={backbone.name} and its options"
            )

    def fit_state(self, state: Mapping[str, Any]) -> None:
        head = state.get("base.cls.4.bias")
        if head is not None and len(head) != self.base.classes + 1:
            self.base = BaseBranch(self.backbone, len(head) - 1)
        held = [part for part in self.backbone.parts if any(key.startswith(f"base.stages.{part}.") for key in state)]
        self.base.hold(self.backbone, held)

    def _load_base_learner(self, content: Mapping[str, Any]) -> None:
        self.base = BaseBranch(self.backbone, len(content["model"]["cls.4.bias"]) - 1)
        self.base.load(content["model"], self.backbone, f"method.base_learner={self.base_learner}")
        made = {**origin(content), "hash": state_digest(content["model"]), "classes": content["trained_on"]["classes"]}
        self.trained_on = {**content["trained_on"], "origin": made}
        self._base_backbone: Mapping[str, Any] = content["config"]["backbone"]


def _merge_layer() -> nn.Conv2d:
    layer = nn.Conv2d(2, 1, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))
    return layer


def _kshot_layer(shot: int, hidden: int) -> nn.Module:
    if hidden:
        return nn.Sequential(nn.Conv2d(shot, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, shot, 1))
    layer = nn.Conv2d(shot, shot, 1, bias=False)
    nn.init.constant_(layer.weight, 1 / shot)
    return layer
