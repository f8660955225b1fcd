"""conv2d, with other steps to the same sums where PyTorch's kernels are slow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

Pair = tuple[int, int]
# From this reach of a dilated kernel on (a side of 5 at dilation 4), oneDNN leaves its fast depthwise kernels: 8 x 1152 x 25
# x 25 took 81 ms on one core with AVX-512, and 18 ms in phases. Below it (a side of 3) it was 7 ms, and 18 in phases.
_WIDE = 16


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """torch.nn.functional.conv2d of x (B, C, H, W), within rounding."""
    if x.device.type == "cpu" and _is_wide(x, weight, stride, padding, dilation, groups):
        return _in_phases(x, weight, bias, padding[0], dilation[0], groups)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _is_wide(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> bool:
    (d, other), side = dilation, weight.shape[-1]
    depthwise = groups == x.shape[1] == weight.shape[0] and weight.shape[-2] == side
    return (
        depthwise
        and stride == (1, 1)
        and d == other > 1
        and d * (side - 1) >= _WIDE
        # As many positions out as in, at the same places.
        and padding == (d * (side // 2), d * (side // 2))
        and side % 2 == 1
    )


def _in_phases(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, d: int, groups: int) -> Tensor:
    """A convolution of dilation d reads every d-th row and column: d * d smaller images, each convolved without dilation."""
    batch, channels, height, width = x.shape
    # In channels-last an image's rows of channels stay together, and this is a copy of rows.
    x = F.pad(x, (0, -width % d, 0, -height % d)).permute(0, 2, 3, 1)
    rows, columns = x.shape[1] // d, x.shape[2] // d
    x = x.reshape(batch, rows, d, columns, d, channels).permute(0, 2, 4, 1, 3, 5)
    x = x.reshape(batch * d * d, rows, columns, channels).permute(0, 3, 1, 2)
    y = F.conv2d(x, weight, bias, 1, padding // d, 1, groups).permute(0, 2, 3, 1)
    y = y.reshape(batch, d, d, rows, columns, channels).permute(0, 3, 1, 4, 2, 5)
    y = y.reshape(batch, rows * d, columns * d, channels).permute(0, 3, 1, 2)
    return y[:, :, :height, :width].contiguous(memory_format=torch.channels_last)
