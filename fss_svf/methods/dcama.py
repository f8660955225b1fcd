"""DCAMA: every query pixel gathers the support's mask by attention, at every block; a decoder joins the results.

Source: DCAMA (ECCV 2022, arXiv 2207.08549), section 4, rebuilt from a description of what its official code computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss_svf.backbones.backbone import ROLES, Backbone
from fss_svf.backbones.stages import SUM
from fss_svf.config import require
from fss_svf.episode import Episode, Features, Prediction
from fss_svf.errors import ConfigError
from fss_svf.methods.blocks import foreground, logits_at, resize
from fss_svf.methods.dcama_blocks import MaskAttention, combined, decoder, norm_convs
from fss_svf.methods.method import FewShotMethod, Rows, cross_entropy, rows_of
from fss_svf.methods.read_taps import freeze_unread, warn_if_dilated
from fss_svf.registry import METHODS

# Kernels of the convolutions that join a stage's coarse masks: of the low, the mid and the deep stage.
KERNELS = ((5, 5, 3), (5, 3, 3), (3, 3, 3))
# Which of DCAMA.inputs come from the masks, the query and the support.
MASKS, QUERY, SUPPORT = (0,), (1, 3), (2, 4)


@dataclass(frozen=True)
class DCAMAOptions:
    """width: channels of the head. heads: of the attention. dropout: of what it compares and of its weights, in training."""

    width: int = 128
    heads: int = 8
    dropout: float = 0.5

    def __post_init__(self) -> None:
        require(self.width >= 8 and self.width % 8 == 0, "width", "a multiple of 8", self.width)
        require(self.heads >= 1, "heads", "a whole number >= 1", self.heads)
        require(0 <= self.dropout < 1, "dropout", "a number from 0 to below 1", self.dropout)


@METHODS.register("dcama", DCAMAOptions)
class DCAMA(FewShotMethod):
    """Any number of shots, in one softmax over all their positions; with protocol.shots=mean the mean of one for each.

    A stage is what a backbone's low, mid or deep role ends: all its blocks, before their last ReLU where they have such
    taps. Features of query and supports, of each stage i from 0 (low) to 2 (deep), L blocks, n = h * w positions:

    query features    queries0..2 (B, L, h, w, C); skip (B, width, h, w), what the decoder's first convolution makes of the
                      query's two maps at low's end and before low
    support features  keys0..2 (M, L, h, w, C) and mask0..2 (M, h, w), at each stage's size; low and fine, the two maps; kept
                      of one: skip
    comparison        values0..2, weights0..2 (B, K, L, heads, h, w): what a support says of every position of the query,
                      and the logarithm of how much it counts beside the other supports
    """

    # The loss is a mean over all pixels, ignored ones too, and so over episodes.
    means_over = MappingProxyType({"main": "episodes"})
    compared = tuple(f"{name}{i}" for name in ("keys", "mask") for i in range(3))

    def __init__(self, backbone: Backbone, options: DCAMAOptions) -> None:
        super().__init__(backbone)
        self.stages, self.fine = pyramid(backbone)
        freeze_unread(backbone, [tap for stage in self.stages for tap in stage])
        warn_if_dilated("dcama", backbone, [backbone.tap(stage[0]).stride for stage in self.stages])
        channels = [backbone.tap(stage[0]).channels for stage in self.stages]
        self.attention = nn.ModuleList(MaskAttention(c, options.heads, options.dropout) for c in channels)
        width = options.width
        widths = (width // 8, width // 2, width)
        self.joined = nn.ModuleList(
            norm_convs(len(stage), widths, kernel) for stage, kernel in zip(self.stages, KERNELS)
        )
        self.mixed = nn.ModuleList(norm_convs(width, (width,) * 3, (3, 3, 3)) for _ in range(2))
        skips = (channels[0], backbone.tap(self.fine).channels)
        # What the decoder reads: the mixed masks, then low of query and support, fine of query and support.
        self.inputs = (width, skips[0], skips[0], skips[1], skips[1])
        self.decoder = decoder(sum(self.inputs), width)

    def encode_query(self, images: Tensor) -> Features:
        return self._query_features(self._maps(images))

    def encode_support(self, images: Tensor, masks: Tensor) -> Features:
        return self._support_features(self._maps(images), masks)

    def encode_both(
        self, images: Tensor, query_rows: Rows, support_rows: Rows, masks: Tensor
    ) -> tuple[Features, Features]:
        maps = self._maps(images)
        of_queries, of_supports = ({name: x[rows] for name, x in maps.items()} for rows in (query_rows, support_rows))
        return self._query_features(of_queries), self._support_features(of_supports, masks)

    def _maps(self, images: Tensor) -> dict[str, Tensor]:
        return self.backbone(
            images, tuple(dict.fromkeys([self.fine, *(tap for stage in self.stages for tap in stage)]))
        )

    def _query_features(self, maps: dict[str, Tensor]) -> Features:
        queries = {f"queries{i}": attention.queries(self._stacked(maps, i)) for i, attention in self._attentions()}
        return {"skip": self._skip(QUERY, **self._skips(maps)), **queries}

    def _support_features(self, maps: dict[str, Tensor], masks: Tensor) -> Features:
        features = self._skips(maps)
        for i, attention in self._attentions():
            stacked = self._stacked(maps, i)
            features[f"keys{i}"] = attention.keys(stacked)
            features[f"mask{i}"] = resize(foreground(masks), stacked.shape[-2:]).squeeze(1)
        return features

    def _attentions(self) -> Iterator[tuple[int, MaskAttention]]:
        for i, attention in enumerate(self.attention):
            assert isinstance(attention, MaskAttention)
            yield i, attention

    def _stacked(self, maps: dict[str, Tensor], stage: int) -> Tensor:
        """(M, L, C, h, w): the maps of a stage's blocks."""
        return torch.stack([maps[tap] for tap in self.stages[stage]], dim=1)

    def _skips(self, maps: dict[str, Tensor]) -> Features:
        return {"low": maps[self.stages[0][-1]], "fine": maps[self.fine]}

    def _skip(self, columns: tuple[int, ...], low: Tensor, fine: Tensor) -> Tensor:
        return self._convolved(columns, torch.cat([resize(low, fine.shape[-2:]), fine], dim=1))

    def _convolved(self, columns: tuple[int, ...], x: Tensor) -> Tensor:
        """The decoder's first convolution of some of its inputs, without the bias: a sum of such parts is the whole."""
        weights = self.decoder[0][0].weight.split(self.inputs, dim=1)  # type: ignore[index]
        return F.conv2d(x, torch.cat([weights[i] for i in columns], dim=1), padding=1)

    def kept(self, support: Features) -> list[Features]:
        # A support that is the only one in many episodes is convolved once.
        return rows_of({**support, "skip": self._skip(SUPPORT, support["low"], support["fine"])})

    def compare(self, query: Features, support: Features) -> Features:
        found: Features = {}
        for i, attention in self._attentions():
            pairs = attention(query[f"queries{i}"], support[f"keys{i}"], support[f"mask{i}"])
            found[f"values{i}"], found[f"weights{i}"] = pairs
        return found

    def segment(self, query: Features, support: Features, size: tuple[int, int]) -> Prediction:
        support = support if "values0" in support else {**support, **self.compare(query, support)}
        low, mid, deep = (join(mask) for join, mask in zip(self.joined, self.coarse_masks(support)))
        x = mid + resize(deep, mid.shape[-2:])
        x = self.mixed[0](x)
        x = self.mixed[1](low + resize(x, low.shape[-2:]))
        x = self._convolved(MASKS, resize(x, query["skip"].shape[-2:])) + query["skip"] + self._support_skip(support)
        first, *others = self.decoder
        x = first[1:](x + first[0].bias.view(-1, 1, 1))  # type: ignore[index]
        for pair in others:
            x = pair(resize(x, [2 * n for n in x.shape[-2:]]))
        return Prediction(logits_at(x, size))

    def _support_skip(self, support: Features) -> Tensor:
        if "skip" in support and support["skip"].shape[1] == 1:
            return support["skip"].squeeze(1)
        # Of several supports the largest value of each channel and position.
        over_shots = torch.mean if self.shots == "mean" else torch.amax
        return self._skip(SUPPORT, over_shots(support["low"], 1), over_shots(support["fine"], 1))

    def coarse_masks(self, compared: Features) -> list[Tensor]:
        """Of the low, mid and deep stage (B, L, h, w): what attention makes of all supports' masks."""
        mean = self.shots == "mean"
        return [combined(compared[f"values{i}"], compared[f"weights{i}"], mean) for i in range(3)]

    def losses(self, prediction: Prediction, episode: Episode) -> dict[str, Tensor]:
        """Cross-entropy over all pixels: an ignored one is background, as in the official code."""
        assert episode.query_mask is not None, "an episode without query_mask has no loss"
        return {"main": cross_entropy(prediction.logits, episode.query_mask == 1)}


def pyramid(backbone: Backbone) -> tuple[list[tuple[str, ...]], str]:
    """The taps of the low, mid and deep stage, and the last tap before the low one's.

    A stage ends with its role's tap, and begins behind the one before. Its blocks are its taps of the same channels and
    stride: those before a ReLU where there are any, else all.
    """
    names = list(backbone.taps)
    ends = [names.index(backbone.tap_name(role)) for role in ROLES]
    if sorted(set(ends)) != ends:
        taps = ", ".join(backbone.tap_name(role) for role in ROLES)
        raise ConfigError(f"method=dcama: needs low, mid and deep maps in this order, got {taps}; set backbone.roles")
    stages = []
    for start, end in zip((0, *(end + 1 for end in ends)), ends):
        alike = [name for name in names[start : end + 1] if backbone.taps[name] == backbone.taps[names[end]]]
        stages.append(tuple([name for name in alike if name.endswith(SUM)] or alike))
    before = names[: names.index(stages[0][0])]
    before = [name for name in before if name.endswith(SUM)] or before or [stages[0][-1]]
    return stages, before[-1]


# Official name: name here. A name includes all that begin with it and a dot.
_OFFICIAL = {
    "feature_extractor.conv1": "backbone.layer0.conv1",
    "feature_extractor.bn1": "backbone.layer0.bn1",
    **{f"feature_extractor.layer{i}": f"backbone.layer{i}" for i in range(1, 5)},
    **{f"model.DCAMA_blocks.{i}.linears.0": f"attention.{i}.query" for i in range(3)},
    **{f"model.DCAMA_blocks.{i}.linears.1": f"attention.{i}.key" for i in range(3)},
    **{f"model.conv{i}": f"joined.{3 - i}" for i in (1, 2, 3)},
    **{f"model.conv{i}": f"mixed.{i - 4}" for i in (4, 5)},
    **{f"model.mixer{i}": f"decoder.{i - 1}" for i in (1, 2, 3)},
}
# Of an official checkpoint: position codes, which are computed here, and a ResNet's classifier.
UNUSED = ("model.pe", "feature_extractor.fc")


def name_here(official: str) -> str:
    """A tensor's name in an official checkpoint of a ResNet to its name in DCAMA; an unknown one stays as it is."""
    for name, here in _OFFICIAL.items():
        if official.startswith(f"{name}."):
            return here + official.removeprefix(name)
    return official
