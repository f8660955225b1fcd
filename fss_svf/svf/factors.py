"""The SVD of one weight. Two routes, chosen by what is faster and accurate; scripts/bench_svd.py measures both.

The usual one is LAPACK's gesdd. The other takes eigenvectors of the smaller Gram matrix (W Wᵀ or Wᵀ W) in float64:
on a ResNet-50 faster and, since it computes in float64, thirty times more accurate in float32. It divides by the
singular values, so a weight with very small ones (dead filters) goes the usual way. Equal shapes are not batched: on
the CPU that gained nothing that stood out of the noise, and often lost (docs/svf.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor, Tensor]

# Vh's rows are orthogonal to about 1e-16 (s_max / s)², so to 1e-6 at this ratio.
SMALLEST = 1e-5
# Gap between neighbouring squares of singular values, over the largest, below which vectors may differ elsewhere.
CLOSE = 3e-7


def matrices_of(weight: Tensor, groups: int) -> Tensor:
    """A weight (Cout, ...) as (groups, Cout / groups, rest) matrices, in float32 or float64, which LAPACK knows."""
    return weight.detach().reshape(groups, weight.shape[0] // groups, -1).to(widened(weight.dtype))


def widened(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the factors of a weight of this dtype: float32 where it is narrower than that."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def svd(matrices: Tensor) -> Factors:
    """U (g, m, r), S (g, r) in descending order and Vh (g, r, n) of matrices (g, m, n), at full rank r = min(m, n).

    Same dtype and device as the matrices; no gradient.
    """
    with torch.no_grad():
        # Groups are small matrices, for which the routes do not differ; not every device has float64.
        if len(matrices) == 1 and matrices.dtype == torch.float32 and matrices.device.type in ("cpu", "cuda"):
            found = by_gram(matrices)
            if found is not None:
                return found
        u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
        return u, s, vh


def determined(s: Tensor) -> bool:
    """Whether the factors of singular values s (g, full) are alike wherever they are computed, up to sign and rounding.

    Vectors turn by about the rounding over the gap between the squares of neighbours. It is that of float64 in by_gram,
    and a product U diag(x) Vh then stays within 1e-8; LAPACK in float32 is not taken to be alike.
    """
    if s.is_meta:
        return False
    if s.shape[1] == 1:  # one vector a group, as in a depthwise convolution
        return bool((s > 0).all())
    squares = (s.double() / s[:, :1].double()).square()
    gaps = squares[:, :-1] - squares[:, 1:]
    return len(s) == 1 and bool(s[0, -1] > SMALLEST * s[0, 0]) and bool((gaps > CLOSE).all())


def by_gram(matrices: Tensor) -> Factors | None:
    """The same by eigenvectors of the smaller Gram matrix, or None where that is not accurate."""
    wide = matrices.double()
    tall = wide.shape[1] > wide.shape[2]
    if tall:
        wide = wide.mT
    squares, vectors = torch.linalg.eigh(wide @ wide.mT)
    s, left = squares.clamp_min(0).sqrt().flip(-1), vectors.flip(-1)  # eigh sorts upwards
    if not bool((s[:, -1] > SMALLEST * s[:, 0]).all()):
        return None
    right = (left.mT @ wide) / s.unsqueeze(-1)
    u, vh = (right.mT, left.mT) if tall else (left, right)
    return u.to(matrices.dtype), s.to(matrices.dtype), vh.to(matrices.dtype)
