"""Blocks that several methods share. Bilinear resizes align corners unless a docstring says otherwise.

Rebuilt from the behaviour of PFENet and of SVF's baseline; no line is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss_svf.precision import in_float32

MAP_EPS = 5e-4
COSINE_EPS = 1e-7


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of (..., C, h, w) with aligned corners; the input itself where it has the size already."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=True)


def at_least_float32(x: Tensor) -> Tensor:
    """What autocast made smaller, as float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def logits_at(x: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (B, n, h, w) resized to `size` in float32: between two classes the third digit decides."""
    return resize(at_least_float32(x), size)


def argmax(x: Tensor, dim: int) -> Tensor:
    """x.argmax(dim). On a CPU PyTorch's own takes 20 times as long over a dimension that is not the last."""
    return x.max(dim).indices


def foreground(masks: Tensor) -> Tensor:
    """(M, H, W) in {0, 1, 255} to (M, 1, H, W) float: 1 on the class, 0 elsewhere and on ignored pixels."""
    return (masks == 1).float().unsqueeze(1)


def masked_average_pooling(features: Tensor, mask: Tensor) -> Tensor:
    """(M, C, h, w) and (M, 1, h, w) to prototypes (M, C): sum(f * m) / (sum(m) + 5e-4). An empty mask gives zeros."""
    # A sum over thousands of positions has more digits than half precision.
    with in_float32(features.device):
        features, mask = at_least_float32(features), at_least_float32(mask)
        return (features * mask).sum((2, 3)) / (mask.sum((2, 3)) + MAP_EPS)


def prior_mask(query: Tensor, support: Tensor) -> Tensor:
    """PFENet's prior (section 3.2 of its paper): (B, C, h, w) and (B, K, C, h, w) to (B, K, 1, h, w) in [0, 1].

    Cosine similarity of every query position with every support position, maximum over support positions, min-max
    normalised per query and shot. `support` is zero outside the object, where the similarity is 0; it may be a list of m
    positions too, (B, K, C, m), as without_empty gives it.
    """
    # Similarities of deep features differ in the third digit.
    with in_float32(query.device):
        q = at_least_float32(query).flatten(2)  # (B, C, n)
        s = at_least_float32(support).flatten(3)  # (B, K, C, m)
        if s.device.type == "cpu":
            # Fewer positions, and shot by shot: a similarity matrix of 641-pixel images takes 170 MB an episode.
            s = without_empty(s.flatten(0, 1)).unflatten(0, s.shape[:2])
            best = torch.cat([_best_cosine(q, one) for one in s.split(1, dim=1)], dim=1)  # (B, K, n)
        else:
            # One product. A GPU multiplies all positions sooner than it says how many there are.
            best = _best_cosine(q, s)
        low = best.amin(-1, keepdim=True)
        prior = (best - low) / (best.amax(-1, keepdim=True) - low + COSINE_EPS)
        return prior.unflatten(-1, query.shape[-2:]).unsqueeze(2)


def without_empty(features: Tensor) -> Tensor:
    """(M, C, n) to (M, C, m): the positions that hold anything, and an empty one, since 0 takes part in the maximum.

    The host waits for the device, to know m.
    """
    filled = (features != 0).any(1)
    m = int(filled.sum(-1).max()) + 1
    if m >= features.shape[-1]:
        return features
    places = filled.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices[..., :m]
    return features.gather(2, places.unsqueeze(1).expand(-1, features.shape[1], -1))


def _best_cosine(query: Tensor, support: Tensor) -> Tensor:
    """(B, C, n) and (B, K, C, m) to (B, K, n): cosine similarity with the most similar of each support's m positions."""
    with torch.no_grad():
        similarity = (support.transpose(2, 3).flatten(1, 2) @ query).unflatten(1, (support.shape[1], support.shape[3]))
        similarity /= support.norm(dim=2).unsqueeze(3) * query.norm(dim=1)[:, None, None] + COSINE_EPS
        best, place = similarity.max(2)
    if not (torch.is_grad_enabled() and (query.requires_grad or support.requires_grad)):
        return best
    # The maximum passes its gradient to one support position for each of the query's: those pairs alone need a graph.
    chosen = support.gather(3, place.unsqueeze(2).expand(-1, -1, support.shape[2], -1))
    norms = query.norm(dim=1).unsqueeze(1) * chosen.norm(dim=2)
    return (query.unsqueeze(1) * chosen).sum(2) / (norms + COSINE_EPS)


def gram_matrix(features: Tensor) -> Tensor:
    """(B, C, h, w) to (B, C, C): cosine similarities of channels over all positions, BAM's picture of a scene."""
    with in_float32(features.device):
        x = at_least_float32(features).flatten(2)
        norms = x.norm(dim=2, keepdim=True)
        return x @ x.transpose(1, 2) / (norms @ norms.transpose(1, 2) + COSINE_EPS)


def gram_distance(query: Tensor, support: Tensor) -> Tensor:
    """BAM's adjustment factor (section 4.4): Gram matrices (B, C, C) and (B, K, C, C) to (B, K).

    The Frobenius norm of the difference over that of a matrix of ones.
    """
    with in_float32(query.device):
        difference = at_least_float32(query).unsqueeze(1) - at_least_float32(support)
        return difference.flatten(2).norm(dim=2) / query.shape[-1]


def conv_relu(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1, bias: bool = False) -> nn.Sequential:
    """A convolution that keeps the size, and ReLU."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=bias)
    return nn.Sequential(conv, nn.ReLU(inplace=True))


class ASPP(nn.Module):
    """Five branches with bias and ReLU, concatenated to 5 * width: image pooling, 1x1, and 3x3 at three dilations.

    Its weights start with Kaiming's normal distribution, as in BAM's ASPP.py, those of every other head layer with PyTorch's
    own, which is 2.4 times narrower: without BatchNorm a head that shrinks its input at each layer learns nothing at first.
    """

    def __init__(self, width: int, dilations: Sequence[int] = (6, 12, 18)) -> None:
        super().__init__()
        self.pooled = conv_relu(width, width, bias=True)
        self.pointwise = conv_relu(width, width, bias=True)
        self.dilated = nn.ModuleList(conv_relu(width, width, 3, d, bias=True) for d in dilations)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) to (B, 5 * width, h, w)."""
        pooled = self.pooled(x.mean((2, 3), keepdim=True)).expand_as(x)
        return torch.cat([pooled, self.pointwise(x), *(branch(x) for branch in self.dilated)], dim=1)


class ResidualPair(nn.Module):
    """x + two 3x3 convolutions with ReLU after each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_relu(width, width, 3), *conv_relu(width, width, 3))

    def forward(self, x: Tensor) -> Tensor:
        # The last ReLU of the body may not write over x, which the sum reads again.
        return self.body(x) + x


def classifier(width: int, classes: int = 2) -> nn.Sequential:
    """3x3 + ReLU + Dropout2d 0.1 + 1x1 with bias."""
    return nn.Sequential(*conv_relu(width, width, 3), nn.Dropout2d(0.1), nn.Conv2d(width, classes, 1))


def vote_margin(votes: Tensor) -> Tensor:
    """(..., H, W) votes of each pixel to whole numbers, 0 or more where it has half of the image's highest vote or more.

    The highest vote of any pixel counts, not the number of voters. Without any vote all is below 0.
    """
    return 2 * votes - votes.amax((-2, -1), keepdim=True).clamp(min=1)
