"""Conv2d and Linear whose weight is U diag(S) Vh, with S trainable.

The weight (Cout, Cin / groups, kh, kw) is read as `groups` matrices of Cout / groups rows; a Linear has one.
At full rank the effective weight is written as W + U diag(S - S0) Vh: equal to U diag(S) Vh, and at S = S0 it is the
pretrained W bit for bit, whatever the precision of the factors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SVFLayer(nn.Module):
    """What SVFConv2d and SVFLinear share. Do not instantiate; svf.decompose converts layers in place.

    weight  the pretrained weight, frozen
    S       (groups, r) singular values, trainable; S0 where they started
    U, Vh   (groups, Cout / groups, r) and (groups, r, Cin / groups * kh * kw), frozen
    """

    weight: Tensor
    S: nn.Parameter
    S0: Tensor
    U: Tensor
    Vh: Tensor
    exact: bool  # full rank: nothing was cut off
    _merged: Tensor | None  # the effective weight while merged
    _disabled: bool

    @property
    def rank(self) -> int:
        return self.S.shape[1]

    @property
    def merged(self) -> bool:
        return self._merged is not None

    def effective_weight(self) -> Tensor:
        """The weight this layer applies when it is neither merged nor disabled; differentiable in S, U and Vh."""
        # Rebuilt outside autocast: eight bits of mantissa would blur the small singular values away.
        # There is no autocast on the meta device, so nothing to leave there.
        with torch.autocast("cpu" if self.S.is_meta else self.S.device.type, enabled=False):
            if self.exact:
                change = (self.U * (self.S - self.S0).unsqueeze(1)) @ self.Vh
                return self.weight + change.reshape(self.weight.shape)
            return ((self.U * self.S.unsqueeze(1)) @ self.Vh).reshape(self.weight.shape)

    def current_weight(self) -> Tensor:
        """The weight of the next forward: pretrained while disabled, stored while merged, else rebuilt from S."""
        if self._disabled:
            return self.weight
        return self.effective_weight() if self._merged is None else self._merged

    def _svf_repr(self) -> str:
        full = "full" if self.exact else "cut"
        return f", rank={self.rank} ({full})" + (", merged" if self.merged else "")


class SVFConv2d(SVFLayer, nn.Conv2d):
    """A Conv2d (any kernel, stride, padding, padding_mode, dilation, groups, bias, dtype, device) with trainable S."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.current_weight(), self.bias)

    def extra_repr(self) -> str:
        return nn.Conv2d.extra_repr(self) + self._svf_repr()


class SVFLinear(SVFLayer, nn.Linear):
    """A Linear with trainable S."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.current_weight(), self.bias)

    def extra_repr(self) -> str:
        return nn.Linear.extra_repr(self) + self._svf_repr()


PlainLayer = nn.Conv2d | nn.Linear
CONVERTED: dict[type[PlainLayer], type[SVFConv2d | SVFLinear]] = {nn.Conv2d: SVFConv2d, nn.Linear: SVFLinear}


def become_svf(layer: PlainLayer, groups: int, factors: tuple[Tensor, Tensor, Tensor]) -> SVFLayer:
    """Turn a plain layer into its SVF layer with the factors (U, S, Vh); Parameters among them are shared, not copied."""
    full = min(layer.weight.shape[0] // groups, layer.weight[0].numel())
    # Changing the class keeps the object: references, hooks, bias and mode stay, and a layer used twice stays one.
    layer.__class__ = CONVERTED[type(layer)]
    assert isinstance(layer, SVFLayer)
    u, s, vh = factors
    layer.weight.requires_grad_(False)
    layer.S = s if isinstance(s, nn.Parameter) else nn.Parameter(s)
    layer.U = u if isinstance(u, nn.Parameter) else nn.Parameter(u, requires_grad=False)
    layer.Vh = vh if isinstance(vh, nn.Parameter) else nn.Parameter(vh, requires_grad=False)
    layer.register_buffer("S0", s.detach().clone())
    layer.register_buffer("_merged", None, persistent=False)
    layer._disabled = False
    layer.exact = layer.rank == full
    return layer


def become_plain(layer: SVFLayer) -> None:
    """Undo become_svf: a plain layer with the pretrained weight."""
    for name in ("S", "S0", "U", "Vh", "_merged", "_disabled", "exact"):
        delattr(layer, name)
    plain: Any = next(plain for plain, converted in CONVERTED.items() if converted is type(layer))
    layer.__class__ = plain


def factorise(weight: Tensor, groups: int, rank: int | None, rank_multiple: int) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of a weight as `groups` matrices: U (g, m, r), S (g, r), Vh (g, r, n), in the weight's dtype and device.

    rank: at most so many singular values; rank_multiple: r floored to a multiple of it, unless r is smaller than it.
    Raises ValueError.
    """
    matrices = weight.detach().reshape(groups, weight.shape[0] // groups, -1)
    full = min(matrices.shape[1:])
    if rank is not None and not 1 <= rank <= full:
        raise ValueError(f"rank {rank} is not between 1 and {full}, the rank of a {tuple(matrices.shape[1:])} matrix")
    if rank_multiple < 1:
        raise ValueError(f"rank_multiple {rank_multiple} is not 1 or more")
    r = full if rank is None else rank
    r = r // rank_multiple * rank_multiple or r
    # LAPACK knows neither half nor bfloat16.
    precise = matrices if matrices.dtype in (torch.float32, torch.float64) else matrices.float()
    u, s, vh = torch.linalg.svd(precise, full_matrices=False)
    u, s, vh = u[..., :r], s[..., :r], vh[:, :r]
    return u.to(weight.dtype).contiguous(), s.to(weight.dtype).contiguous(), vh.to(weight.dtype).contiguous()
