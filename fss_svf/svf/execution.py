"""The factored execution of a training step: S gets its gradient without the gradient of a whole weight.

y = U diag(S) V x is a convolution with V's rows as filters, giving z with one channel a singular value, and a 1x1
convolution with U diag(S). The gradient of S_i is the sum over positions of (U^T g)_i z_i, that of x the transposed
convolution of U^T g with diag(S) V: z is all that has to be kept. A scale and a shift of the output's channels, as of a
frozen BatchNorm, go into U and a bias; a ReLU keeps one byte a value.

The rebuilt execution (layers.py) convolves with U diag(S) V as one weight and leaves the rest to autograd.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fss_svf.svf.convolution import conv2d


@dataclass(frozen=True)
class Geometry:
    """Of a Conv2d with zero padding."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True)
class After:
    """What follows a convolution: relu?(scale * y + shift + residual). scale, shift (Cout,); residual of y's shape.

    top: where the ReLU ends, 6 for a ReLU6.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    residual: Tensor | None = None
    relu: bool = False
    top: float = math.inf


def factored_conv(x: Tensor, s: Tensor, u: Tensor, vh: Tensor, geometry: Geometry, after: After) -> Tensor:
    """Convolve with U diag(S) V, differentiable in x, S, the shift and the residual, and once.

    x (B, Cin, H, W); s (g, r); u (g, Cout / g, r); vh (g * r, Cin / g, kh, kw). Under autocast the convolutions run in
    its dtype and the factors are joined in theirs.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        out: Tensor = _Factored.apply(
            x.to(dtype), s, u, vh.to(dtype), after.scale, after.shift, after.residual, after.relu, after.top, geometry
        )
    return out


class _Factored(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        s: Tensor,
        u: Tensor,
        vh: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        residual: Tensor | None,
        relu: bool,
        top: float,
        geometry: Geometry,
    ) -> Tensor:
        g = geometry
        z = conv2d(x, vh, None, g.stride, g.padding, g.dilation, g.groups)
        if scale is not None:
            u = u * scale.view(*u.shape[:2], 1)
        y = _pointwise(z, u * s.unsqueeze(1), None if shift is None else shift.to(x.dtype))
        if residual is not None:
            y += residual
        kept = None
        if relu:
            y.clamp_(0, top)
            kept = y > 0
            if top < math.inf:
                kept &= y < top
        ctx.save_for_backward(z, s, u, vh, kept)
        ctx.geometry, ctx.size, ctx.adds = g, x.shape[-2:], residual is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, s, u, vh, kept = ctx.saved_tensors
        g: Geometry = ctx.geometry
        if kept is not None:
            grad = grad.where(kept, 0)
        h = _pointwise(grad, u.transpose(1, 2))
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = _input_gradient(h, vh * s.to(vh.dtype).view(-1, 1, 1, 1), g, ctx.size)
        grad_s = None
        if ctx.needs_input_grad[1]:
            grad_s = h.mul_(z).sum((0, 2, 3), dtype=s.dtype).view(s.shape)  # h is not read again
        grad_shift = grad.sum((0, 2, 3)) if ctx.needs_input_grad[5] else None
        return grad_x, grad_s, None, None, None, grad_shift, grad if ctx.adds else None, None, None, None


def _input_gradient(grad: Tensor, weight: Tensor, g: Geometry, size: Sequence[int]) -> Tensor:
    """The gradient of a convolution's input of height and width `size`. weight (g * r, C / g, kh, kw)."""
    kernel = weight.shape[-2:]
    padding = [dilation * (k - 1) - padding for dilation, k, padding in zip(g.dilation, kernel, g.padding)]
    if g.stride == (1, 1) and min(padding) >= 0:
        # A convolution with the mirrored kernel: the same sums as the transposed one, whose kernels are slower on CPUs.
        turned = weight.unflatten(0, (g.groups, -1)).transpose(1, 2).flatten(0, 1).flip(-2, -1)
        return conv2d(grad, turned, None, (1, 1), (padding[0], padding[1]), g.dilation, g.groups)
    # What the stride skipped at the far ends.
    rest = [
        length - ((out - 1) * stride - 2 * padding + dilation * (k - 1) + 1)
        for length, out, stride, padding, dilation, k in zip(
            size, grad.shape[-2:], g.stride, g.padding, g.dilation, kernel
        )
    ]
    return F.conv_transpose2d(grad, weight, None, g.stride, g.padding, rest, g.groups, g.dilation)


def _pointwise(x: Tensor, matrices: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution of g groups: x (B, g * r, H, W), matrices (g, m, r), bias (g * m,) to (B, g * m, H, W)."""
    weight = matrices.to(x.dtype).flatten(0, 1)[:, :, None, None]
    if matrices.shape[1:] == (1, 1):
        # A depthwise convolution: one factor a channel, for which a convolution of as many groups is slow on CPUs.
        y = x * weight.transpose(0, 1)
        return y if bias is None else y.add_(bias[:, None, None])
    return F.conv2d(x, weight, bias, groups=len(matrices))


def factored_is_cheaper(weight: Sequence[int], rank: int, groups: int, positions: int) -> bool:
    """Whether a training step of a convolution takes fewer multiplications in factored form.

    weight: (Cout, Cin / groups, kh, kw); positions: batch x height x width of the output. Forward, gradient of x and of S:
    factored twice z and y; rebuilt three times the whole (its third is the weight's gradient), and the weight itself.
    """
    m, n = weight[0] // groups, math.prod(weight[1:])
    factored = 2 * rank * (m + n) * positions
    rebuilt = 3 * m * n * positions + 2 * m * n * rank
    return factored < rebuilt
