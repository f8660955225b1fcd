"""HSNet: all correlations of a query's maps with a support's, squeezed to a mask by convolutions in four dimensions.

Source: Hypercorrelation Squeeze for Few-Shot Segmentation (ICCV 2021, arXiv 2104.01538), and the behaviour of its code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.func import functional_call

from fss_svf.backbones.backbone import ROLES, Backbone
from fss_svf.backbones.stages import SUM
from fss_svf.config import require
from fss_svf.episode import Episode, Features, Prediction
from fss_svf.errors import ConfigError
from fss_svf.methods.blocks import argmax, foreground, logits_at, resize, vote_margin
from fss_svf.methods.hypercorrelation import SqueezeNetwork, correlation, squeezed, unit_length
from fss_svf.methods.method import FewShotMethod, Rows, cross_entropy, rows_of
from fss_svf.methods.read_taps import freeze_unread, require_tap, sums_of, warn_if_dilated
from fss_svf.registry import METHODS

# Fine to coarse, by the stages of a ResNet that they are made of.
LEVELS = ("level2", "level3", "level4")
PLACES = tuple(f"places{level[-1]}" for level in LEVELS)
Taps = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class HSNetOptions:
    """taps: those whose maps are correlated, in three levels from fine to coarse; None: default_taps of the backbone."""

    taps: Taps | None = None

    def __post_init__(self) -> None:
        fits = self.taps is None or (len(self.taps) == len(LEVELS) and all(self.taps))
        require(fits, "taps", "null or three lists of taps, fine to coarse, none empty", self.taps)


@METHODS.register("hsnet", HSNetOptions)
class HSNet(FewShotMethod):
    """Trained and run at one support; of K supports each gives a mask, and the masks vote.

    query features    level2, level3, level4 (B, L, C, h, w): the L maps of each level, of unit length over channels
    support features  the same of masked maps; kept of one: level2 (1, L, C, m), the m positions of the object alone, and
                      places2 (1, m) int64, their numbers in the map
    comparison        logits (B, K, 2, 2h, 2w) of each pair, before they are resized to the image
    """

    compared = (*LEVELS, *PLACES)
    # An ignored pixel is background in supports and in the loss.
    means_over = MappingProxyType({"main": "episodes"})

    def __init__(self, backbone: Backbone, options: HSNetOptions) -> None:
        super().__init__(backbone)
        self.taps = default_taps(backbone) if options.taps is None else options.taps
        for number, level in enumerate(self.taps):
            maps = {tuple(backbone.tap(require_tap(backbone, tap, f"method.taps[{number}]"))) for tap in level}
            require(len(maps) == 1, f"method.taps[{number}]", "taps of the same channels and stride", list(level))
        freeze_unread(backbone, [backbone.tap_name(tap) for level in self.taps for tap in level])
        strides = [backbone.tap(level[0]).stride for level in self.taps]
        require(strides == sorted(strides), "method.taps", "levels from fine to coarse", [f"1/{s}" for s in strides])
        warn_if_dilated("hsnet", backbone, strides)
        self.head = SqueezeNetwork([len(level) for level in self.taps], strides)

    def encode_query(self, images: Tensor) -> Features:
        return {name: unit_length(maps) for name, maps in self._levels(images).items()}

    def encode_support(self, images: Tensor, masks: Tensor) -> Features:
        return _masked(self._levels(images), masks)

    def encode_both(
        self, images: Tensor, query_rows: Rows, support_rows: Rows, masks: Tensor
    ) -> tuple[Features, Features]:
        levels = self._levels(images)
        query = {name: unit_length(maps[query_rows]) for name, maps in levels.items()}
        return query, _masked({name: maps[support_rows] for name, maps in levels.items()}, masks)

    def _levels(self, images: Tensor) -> Features:
        """(B, L, C, h, w) of each level."""
        maps = self.backbone(images, [tap for level in self.taps for tap in level])
        return {name: torch.stack([maps[tap] for tap in level], dim=1) for name, level in zip(LEVELS, self.taps)}

    def kept(self, support: Features) -> list[Features]:
        # Outside the object a support's maps and all correlations with them are 0.
        return [_object_alone(row) for row in rows_of(support)]

    def compare(self, query: Features, support: Features) -> Features:
        logits = self.head(self.correlations(query, support))
        return {"logits": logits.unflatten(0, support[LEVELS[0]].shape[:2])}

    def correlations(self, query: Features, support: Features) -> list[Tensor]:
        """Of each level (B * K, L, ha, wa, hb, wb). Raises ConfigError where the support's sides would not agree."""
        pairs = [(query[level], support[level], support.get(places)) for level, places in zip(LEVELS, PLACES)]
        found = [correlation(*pair) for pair in pairs]
        if not self._agree(c.shape[4:] for c in found):
            sides = ", ".join(f"{c.shape[4]} x {c.shape[5]}" for c in found)
            raise ConfigError(
                f"HSNet: the support's maps of {sides} do not end at one size when they are squeezed; use an image size "
                "that check_size accepts, or maps at 1/8, 1/16 and 1/32 (backbone.dilation=none)"
            )
        return found

    def _agree(self, sides: Iterable[Sequence[int]]) -> bool:
        ends = {tuple(squeezed(n, by) for n in side) for side, by in zip(sides, self.head.strides)}
        return len(ends) == 1

    def check_size(self, size: int, key: str = "size", squash: bool = False) -> None:
        super().check_size(size, key, squash)
        if self._agrees_at(size):
            return
        near = (size + step * sign for step in range(1, 257) for sign in (-1, 1))
        fitting = next((n for n in near if self._accepts(n, squash) and self._agrees_at(n)), None)
        way_out = "another backbone or method.taps" if fitting is None else f"the nearest possible: {fitting}"
        raise ConfigError(
            f"{key}: at {size} the levels of HSNet do not end at one size on this backbone when they are squeezed; {way_out}"
        )

    def _accepts(self, size: int, squash: bool) -> bool:
        try:
            super().check_size(size, "size", squash)
        except ConfigError:
            return False
        return True

    def _agrees_at(self, size: int) -> bool:
        """Whether the levels of an image of size x size agree, by a run of the backbone without values."""
        if len({self.backbone.tap(level[0]).stride for level in self.taps}) == 1:
            return True
        tensors = [*self.backbone.named_parameters(), *self.backbone.named_buffers()]
        state = {name: value.to("meta") for name, value in tensors}
        taps = [level[0] for level in self.taps]
        with torch.no_grad():
            image = torch.empty(1, 3, size, size, device="meta", dtype=tensors[0][1].dtype)
            maps = functional_call(self.backbone, state, (image, taps))
        return self._agree(maps[tap].shape[2:] for tap in taps)

    def segment(self, query: Features, support: Features, size: tuple[int, int]) -> Prediction:
        """Of K > 1 supports the logits say what their masks voted, and aux holds votes (B, H, W), how many found the object;
        in training also alone (B, K, 2, H, W), the logits by each support, which the loss looks at.
        """
        if "logits" in support:
            logits = support["logits"]
        else:
            # Pair by pair: the correlations of one take 0.2 GB at 400 pixels.
            shots = range(support[LEVELS[0]].shape[1])
            rows = ({name: value[:, k : k + 1] for name, value in support.items()} for k in shots)
            logits = torch.cat([self.compare(query, row)["logits"] for row in rows], dim=1)
        alone = logits_at(logits.flatten(0, 1), size).unflatten(0, logits.shape[:2])
        if alone.shape[1] == 1:
            return Prediction(alone[:, 0])
        if self.shots == "mean":
            return Prediction(alone.mean(1))
        votes = argmax(alone, 2).sum(1)
        aux = {"votes": votes, "alone": alone} if self.training else {"votes": votes}
        return Prediction(_voted(votes, alone.dtype), aux)

    def losses(self, prediction: Prediction, episode: Episode) -> dict[str, Tensor]:
        """Cross-entropy over all pixels, of which the ignored ones count as background; of K supports the mean over what
        each gives alone."""
        mask = episode.query_mask
        assert mask is not None, "an episode without query_mask has no loss"
        mask = (mask == 1).long()
        alone = prediction.aux.get("alone")
        if alone is None:
            return {"main": cross_entropy(prediction.logits, mask)}
        return {"main": torch.stack([cross_entropy(logits, mask) for logits in alone.unbind(1)]).mean()}


def default_taps(backbone: Backbone) -> Taps:
    """The maps before a layer's ReLU at 1/8, 1/16 and 1/32, as in HSNet's ResNets and VGG16, whose level at 1/32 is a pool.

    Where a backbone has other strides, those of its roles' stages; where it has none before a ReLU, its roles.
    """
    by_stride: dict[int, list[str]] = {}
    for name, tap in backbone.taps.items():
        by_stride.setdefault(tap.stride, []).append(name)
    sums = {stride: [name for name in names if name.endswith(SUM)] for stride, names in by_stride.items()}
    strides = (8, 16, 32)
    if any(sums.values()) and all(stride in by_stride for stride in strides):
        return tuple(tuple(sums[stride] or by_stride[stride][-1:]) for stride in strides)
    return tuple(tuple(sums_of(backbone, backbone.tap_name(role)) or [role]) for role in ROLES)


def _masked(levels: Features, masks: Tensor) -> Features:
    """Maps of supports (M, L, C, h, w) times their masks (M, H, W) resized, of unit length."""
    mask = foreground(masks)
    return {
        name: unit_length(maps * resize(mask, maps.shape[-2:]).unsqueeze(1).to(maps.dtype))
        for name, maps in levels.items()
    }


def _object_alone(row: Features) -> Features:
    """One support's row with the positions of its object alone. On a GPU the host waits, to know how many there are."""
    kept: Features = {}
    for level, places in zip(LEVELS, PLACES):
        maps = row[level].flatten(3)
        inside = (maps != 0).flatten(1, 2).any(1)  # (1, n)
        count = max(int(inside.sum()), 1)
        found = inside.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :count]
        kept |= {level: maps.gather(3, found[:, None, None].expand(*maps.shape[:3], -1)), places: found}
    return kept


def _voted(votes: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, H, W) votes to logits (B, 2, H, W): foreground where a pixel has half of the image's highest vote, or more."""
    margin = vote_margin(votes).to(dtype) + 0.5  # half of a vote: at a tie the first logit would win
    return torch.stack([torch.zeros_like(margin), margin], dim=1)
