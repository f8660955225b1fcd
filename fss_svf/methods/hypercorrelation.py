"""4D correlations of two images' feature maps, and the network that squeezes them: the head of HSNet.

Source: Hypercorrelation Squeeze for Few-Shot Segmentation (ICCV 2021, arXiv 2104.01538), sections 4.1 and 4.2, and the
behaviour of its code; no line is theirs. A correlation of P pairs is (P, L, ha, wa, hb, wb): of L maps, a position of the
query's (ha, wa) with one of the support's (hb, wb).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from fss_svf.methods.blocks import at_least_float32, resize

NORM_EPS = 1e-5
WIDTHS = (16, 64, 128)
GROUPS = 4
# Pixels of an image for one position that is left of the support when a correlation is squeezed.
SQUEEZED = 256


def unit_length(features: Tensor) -> Tensor:
    """(M, L, C, h, w) divided by its norm over channels, + 1e-5, in the same dtype."""
    x = at_least_float32(features)
    return (x / (x.norm(dim=2, keepdim=True) + NORM_EPS)).to(features.dtype)


def correlation(query: Tensor, support: Tensor, places: Tensor | None = None) -> Tensor:
    """Cosines above 0 of unit_length features (B, L, C, ha, wa) and (B, K, L, C, hb, wb): (B * K, L, ha, wa, hb, wb).

    places  (B, K, m) int64, where `support` is (B, K, L, C, m): the numbers of these m positions in a map of the query's
            size; elsewhere the correlation is 0. Several zero vectors may share a place.
    """
    b = support.flatten(4) if places is None else support
    cosines = (query.flatten(3).transpose(2, 3).unsqueeze(1) @ b).clamp(min=0)  # (B, K, L, n, m)
    of_support = query.shape[-2:] if places is not None else support.shape[-2:]
    if places is not None:
        index = places[:, :, None, None].expand_as(cosines)
        whole = cosines.new_zeros(*cosines.shape[:4], of_support.numel())
        cosines = whole.scatter_add(4, index, cosines)
    return cosines.flatten(0, 1).unflatten(3, of_support).unflatten(2, query.shape[-2:])


class CenterPivotConv4d(nn.Module):
    """A 4D convolution of which only the parts remain that keep one image's position: a 2D one over each image, summed.

    stride: of the support's sides, which become ceil(side / stride).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.conv2 = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        pairs, (ha, wa) = len(x), x.shape[2:4]
        pivots = x[..., :: self.stride, :: self.stride]
        over_query = self.conv1(pivots.permute(0, 4, 5, 1, 2, 3).flatten(0, 2))
        over_support = self.conv2(x.permute(0, 2, 3, 1, 4, 5).flatten(0, 2))
        over_query = over_query.unflatten(0, (pairs, *pivots.shape[-2:])).permute(0, 3, 4, 5, 1, 2)
        return over_query + over_support.unflatten(0, (pairs, ha, wa)).permute(0, 3, 1, 2, 4, 5)


def squeeze_strides(stride: int) -> tuple[int, ...]:
    """Strides of a level's three convolutions: 2, 2, 2 of maps at 1/32; 4, 2, 2 at 1/16; 4, 4, 2 at 1/8, so that the
    support's sides end at 1/256 of the image. A patch of 14 pixels counts as 16.
    """
    fours = round(math.log2(SQUEEZED / stride)) - len(WIDTHS)  # all three at 1/4, and where maps are finer still
    return tuple(4 if number < fours else 2 for number in range(len(WIDTHS)))


def squeezed(side: int, strides: Sequence[int]) -> int:
    """What a squeeze by these strides leaves of a side."""
    for stride in strides:
        side = -(-side // stride)
    return side


def _block(inputs: int, widths: Sequence[int], strides: Sequence[int]) -> nn.Sequential:
    """Convolutions of 3, or of 5 at a stride of 4, each with GroupNorm and ReLU."""
    layers: list[nn.Module] = []
    for (before, after), stride in zip(pairwise((inputs, *widths)), strides):
        conv = CenterPivotConv4d(before, after, 5 if stride == 4 else 3, stride)
        layers += [conv, nn.GroupNorm(GROUPS, after), _relu()]
    return nn.Sequential(*layers)


class SqueezeNetwork(nn.Module):
    """Correlations of three levels to logits. maps, strides: number of maps and stride of each level, fine to coarse."""

    def __init__(self, maps: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = [squeeze_strides(stride) for stride in strides]
        width, half = WIDTHS[-1], WIDTHS[-1] // 2
        self.squeeze = nn.ModuleList(_block(n, WIDTHS, by) for n, by in zip(maps, self.strides))
        self.mix = nn.ModuleList(_block(width, (width,) * 3, (1,) * 3) for _ in maps[1:])
        self.decoder1 = nn.Sequential(_conv3(width, width), _relu(), _conv3(width, half), _relu())
        self.decoder2 = nn.Sequential(_conv3(half, half), _relu(), _conv3(half, 2))

    def forward(self, correlations: Sequence[Tensor]) -> Tensor:
        """Of each level (P, maps, ha, wa, hb, wb), fine to coarse, to (P, 2, 2 ha, 2 wa) of the finest level's ha and wa.

        The sides of the support must agree after the squeeze.
        """
        x: Tensor | None = None
        for level in reversed(range(len(self.squeeze))):
            squeezed = self.squeeze[level](correlations[level])
            x = squeezed if x is None else self.mix[level](squeezed + _resize_query(x, squeezed.shape[2:4]))
        assert x is not None
        x = self.decoder1(x.mean((4, 5)))
        logits: Tensor = self.decoder2(resize(x, [2 * side for side in x.shape[-2:]]))
        return logits


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _relu() -> nn.ReLU:
    return nn.ReLU(inplace=True)


def _resize_query(x: Tensor, size: Sequence[int]) -> Tensor:
    """(P, C, ha, wa, hb, wb) to other ha and wa."""
    if tuple(x.shape[2:4]) == tuple(size):
        return x
    flat = x.permute(0, 1, 4, 5, 2, 3)
    resized = F.interpolate(flat.flatten(1, 3), size=list(size), mode="bilinear", align_corners=True)
    return resized.unflatten(1, flat.shape[1:4]).permute(0, 1, 4, 5, 2, 3)
