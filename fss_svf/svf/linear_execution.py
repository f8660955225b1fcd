"""The training step of a Linear in two forms that autograd would not find by itself.

factored_linear  as for convolutions (execution.py): y = U diag(S) V x, which keeps V x alone and never forms the gradient
                 of a weight
linear_of_parts  one product with a weight of several matrices, of which only those that train get a gradient
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def factored_linear(x: Tensor, s: Tensor, u: Tensor, vh: Tensor, bias: Tensor | None) -> Tensor:
    """x V^T diag(S) U^T + bias, differentiable in x, S and the bias, and once.

    x (..., n); s (r,); u (m, r); vh (r, n); bias (m,). Under autocast the products run in its dtype.
    """
    dtype = _dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        # Reshaped out here: what a Function returns is no view, so that it may be changed in place.
        rows = x.to(dtype).reshape(-1, x.shape[-1])
        out: Tensor = _Factored.apply(rows, s, u, vh.to(dtype), None if bias is None else bias.to(dtype))
    return out.view(*x.shape[:-1], -1)


def linear_of_parts(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """F.linear(x, cat(weights), bias), to the bit, differentiable in x, the weights and the bias, and once.

    x (..., n); up to three weights (m_i, n), whose gradients are computed only where one is wanted; bias (sum of m_i,).
    """
    dtype = _dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        first, *rest = (weight.to(dtype) for weight in weights)
        second, third = (*rest, None, None)[:2]
        out: Tensor = _Parts.apply(x.to(dtype), None if bias is None else bias.to(dtype), first, second, third)
    return out


def _dtype(x: Tensor) -> torch.dtype:
    """What a product of x runs in."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class _Factored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Tensor, u: Tensor, vh: Tensor, bias: Tensor | None) -> Tensor:
        z = x @ vh.mT
        ctx.save_for_backward(z, s, u, vh)
        return F.linear(z, (u * s).to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, s, u, vh = ctx.saved_tensors
        h = grad @ u.to(grad.dtype)
        grad_x = h @ (vh * s.to(vh.dtype).unsqueeze(1)) if ctx.needs_input_grad[0] else None
        grad_s = h.mul_(z).sum(0, dtype=s.dtype) if ctx.needs_input_grad[1] else None  # h is not read again
        return grad_x, grad_s, None, None, grad.sum(0) if ctx.needs_input_grad[4] else None


class _Parts(torch.autograd.Function):
    # Three arguments and not *weights, which PyTorch's compiler does not take in a Function.
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, first: Tensor, second: Tensor | None, third: Tensor | None
    ) -> Tensor:
        weights = [weight for weight in (first, second, third) if weight is not None]
        weight = torch.cat(weights)
        ctx.save_for_backward(x, weight)
        ctx.rows = [len(part) for part in weights]
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        flat, inputs = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        grad_bias = flat.sum(0) if ctx.needs_input_grad[1] else None
        of_weights: list[Tensor | None] = [None, None, None]
        for number, piece in enumerate(flat.split(ctx.rows, dim=1)):
            if ctx.needs_input_grad[2 + number]:
                of_weights[number] = piece.mT @ inputs
        return grad_x, grad_bias, *of_weights
