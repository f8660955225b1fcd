"""The parts of DCAMA: attention that carries a mask from a support to a query, and the convolutions behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fss_svf.config import require
from fss_svf.methods.blocks import at_least_float32
from fss_svf.precision import in_float32

GROUPS = 4  # of GroupNorm; fewer where they do not divide a narrow head


class MaskAttention(nn.Module):
    """Attention of several heads whose values are a mask: linear layers for queries and keys alone, shared by all blocks of
    a stage.
    """

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        require(channels % heads == 0, "method.heads", f"a divisor of the stage's {channels} channels", heads)
        self.heads = heads
        self.query, self.key = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.before, self.of_weights = nn.Dropout(dropout), nn.Dropout(dropout)

    def queries(self, maps: Tensor) -> Tensor:
        """(M, L, C, h, w) of L blocks to (M, L, h, w, C)."""
        projected: Tensor = self.query(self._placed(maps))
        return projected

    def keys(self, maps: Tensor) -> Tensor:
        """(M, L, C, h, w) of L blocks to (M, L, h, w, C)."""
        projected: Tensor = self.key(self._placed(maps))
        return projected

    def _placed(self, maps: Tensor) -> Tensor:
        """Maps with the code of their positions, numbered row by row, after dropout; channels last."""
        height, width = maps.shape[-2:]
        code = position_codes(height * width, maps.shape[2], maps.device).view(height, width, -1)
        dropped: Tensor = self.before(maps.movedim(2, -1) + code.to(torch.promote_types(maps.dtype, torch.float32)))
        return dropped

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What each support says of each position of the query.

        queries (B, L, h, w, C), keys (B, K, L, h', w', C), mask (B, K, h', w') in [0, 1]: 0 is background, which takes part.
        Returns values and weights (B, K, L, heads, h, w) for `combined`, both in float32 or wider.
        """
        size, flat = queries.shape[2:4], mask.flatten(2)[:, :, None, :, None]
        # A CPU does a head at a time: its weights stay in the cache.
        heads = 1 if queries.device.type == "cpu" else self.heads
        values, weights = [], []
        for block in range(queries.shape[1]):  # the weights of 48 x 48 positions take 170 MB a block
            q = self._by_head(queries[:, block].unsqueeze(1))
            k = self._by_head(keys[:, :, block])
            parts = [self._attend(*part, flat) for part in zip(q.split(heads, dim=2), k.split(heads, dim=2))]
            value, total = (torch.cat(of_heads, dim=2) for of_heads in zip(*parts))
            values.append(value.unflatten(-1, size))
            weights.append(total.unflatten(-1, size))
        return torch.stack(values, dim=2), torch.stack(weights, dim=2)

    def _attend(self, q: Tensor, k: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Some heads' values and weights (B, K, heads, n). The softmax is over one support; over all of them it is this one
        times `combined`'s.
        """
        scores = at_least_float32(q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])  # (B, K, heads, n, m)
        with in_float32(scores.device):
            largest = scores.detach().amax(-1, keepdim=True)
            exponentials = (scores - largest).exp()
            total = exponentials.sum(-1)
            value = (self.of_weights(exponentials) @ mask.to(scores.dtype)).squeeze(-1) / total
            return value, total.log() + largest.squeeze(-1)

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, K, h, w, C) to (B, K, heads, h * w, C / heads)."""
        return x.flatten(2, 3).unflatten(-1, (self.heads, -1)).transpose(2, 3)


def combined(values: Tensor, weights: Tensor, mean: bool = False) -> Tensor:
    """(B, K, L, heads, h, w) each, of MaskAttention, to coarse masks (B, L, h, w): one softmax over the positions of all K
    supports, and the mean over heads. `mean`: instead the plain mean of what the supports say.
    """
    with in_float32(values.device):
        values = at_least_float32(values)
        if mean:
            return values.mean(1).mean(2)
        return (at_least_float32(weights).softmax(1) * values).sum(1).mean(2)


def position_codes(n: int, channels: int, device: torch.device) -> Tensor:
    """(n, channels) float32: sin(p w_i) and cos(p w_i) in turn, w_i = 10000 ** (-2 i / channels), of positions p from 0."""
    rates = torch.exp(torch.arange(0, channels, 2, device=device) * (-math.log(10000.0) / channels))
    angles = torch.arange(n, device=device).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :channels]


def norm_convs(inputs: int, widths: Sequence[int], kernels: Sequence[int]) -> nn.Sequential:
    """Convolutions that keep the size, each with GroupNorm and ReLU."""
    layers: list[nn.Module] = []
    for width, kernel in zip(widths, kernels):
        conv = nn.Conv2d(inputs, width, kernel, padding=kernel // 2)
        layers += [conv, nn.GroupNorm(math.gcd(GROUPS, width), width), nn.ReLU(inplace=True)]
        inputs = width
    return nn.Sequential(*layers)


def decoder(inputs: int, width: int) -> nn.ModuleList:
    """Three pairs of 3x3 convolutions, to 1/2 of the width, 1/8 and the 2 logits; a ReLU behind each but the last."""
    half, eighth = width // 2, width // 8
    pairs: list[nn.Module] = []
    for before, between, after in ((inputs, width, half), (half, half, eighth), (eighth, eighth, 2)):
        first, second = nn.Conv2d(before, between, 3, padding=1), nn.Conv2d(between, after, 3, padding=1)
        last: list[nn.Module] = [] if len(pairs) == 2 else [nn.ReLU(inplace=True)]
        pairs.append(nn.Sequential(first, nn.ReLU(inplace=True), second, *last))
    return nn.ModuleList(pairs)
