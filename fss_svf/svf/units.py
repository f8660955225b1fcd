"""A convolution with what follows it as one step: frozen BatchNorm, a residual, a ReLU or ReLU6.

BatchNorm in eval mode is a scale and a shift of channels, which go into the convolution's weight. What is left keeps less
for the backward and passes over memory once where the modules one by one pass three or four times.
"""

from __future__ import annotations

import math
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss_svf.svf.convolution import conv2d
from fss_svf.tuned import TunedConv2d


def conv_unit(
    conv: nn.Module,
    bn: nn.Module | None,
    x: Tensor,
    relu: bool = True,
    residual: Tensor | None = None,
    top: float = math.inf,
) -> Tensor:
    """relu?(bn(conv(x)) + residual), within rounding; modules that cannot be joined are called one after the other.

    top: where the ReLU ends, 6 for a ReLU6.
    """
    if not can_join(conv, bn):
        y = _convolve(conv, x, conv.weight, conv.bias) if _is_plain(conv) else conv(x)
        y = y if bn is None else bn(y)
        y = y if residual is None else y + residual
        # In place as in torchvision's blocks, but where a hook may hold y.
        held = residual is None and any(module is not None and hooked(module) for module in (conv, bn))
        return _relu(y, top, inplace=not held) if relu else y
    assert isinstance(conv, nn.Conv2d)
    scale, shift = _scale_and_shift(conv, bn)
    weight = conv.weight
    if isinstance(conv, TunedConv2d):
        joined = conv.joined(x, scale, shift, residual, relu, top)
        if joined is not None:
            return joined
        weight = conv.current_weight()
    y = _convolve(conv, x, weight if scale is None else weight * scale.view(-1, 1, 1, 1), shift)
    if residual is not None:
        y += residual
    return _relu(y, top, inplace=True) if relu else y


def _is_plain(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a convolution is what it seems, and nothing waits for it to be called."""
    return type(conv) is nn.Conv2d and not hooked(conv)


def _convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str) or x.dim() != 4:
        return conv._conv_forward(x, weight, bias)
    return conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)  # type: ignore[arg-type]


def _relu(y: Tensor, top: float, inplace: bool) -> Tensor:
    return F.relu(y, inplace) if top == math.inf else F.hardtanh(y, 0, top, inplace)


def can_join(conv: nn.Module, bn: nn.Module | None) -> bool:
    """Whether the modules are what they seem (no subclass but a tuned one, no hook) and BatchNorm is frozen here."""
    joins = _is_plain(conv) or (isinstance(conv, TunedConv2d) and not hooked(conv))
    if bn is None or not joins:
        return joins
    if isinstance(bn, nn.BatchNorm2d) and bn.weight is not None and bn.weight.dtype != conv.weight.dtype:
        return False
    trains = torch.is_grad_enabled() and any(p.requires_grad for p in bn.parameters())
    return (
        type(bn) is nn.BatchNorm2d
        and bn.running_var is not None
        and bn.affine
        and not (bn.training or trains or hooked(bn))
    )


def hooked(module: nn.Module) -> bool:
    """Whether anything waits for the module to be called."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _scale_and_shift(conv: nn.Conv2d, bn: nn.Module | None) -> tuple[Tensor | None, Tensor | None]:
    """The BatchNorm behind a convolution, and the convolution's own bias, as (Cout,) each; None: there is none."""
    if bn is None:
        return None, conv.bias
    assert isinstance(bn, nn.BatchNorm2d)
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    shift = bn.bias - bn.running_mean * scale
    return scale, shift if conv.bias is None else torch.addcmul(shift, conv.bias, scale)
