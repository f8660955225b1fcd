"""Logits in the size and place of the label that a protocol counts on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fss_svf.config import Protocol
from fss_svf.data.augment import EvalTransform
from fss_svf.methods.blocks import at_least_float32


def at_label(logits: Tensor, size: tuple[int, int], protocol: Protocol) -> Tensor:
    """(B, C, h, w) logits of one image as float32 or wider (B, C, H, W), where its original label is of `size` (H, W).

    With label=original they are stretched as in the official code, with label=exact to where the image's pixels come
    from: see conf/protocol/svf.yaml.
    """
    if protocol.label == "exact":
        return rows_at_label(logits, size, protocol, 0, size[0])
    logits = at_least_float32(logits)
    if protocol.label == "resized":
        return logits
    # With pad, the label stands in a square of its longer side, and the whole padded input is stretched to it.
    target = (max(size), max(size)) if protocol.resize == "pad" else size
    stretched = F.interpolate(logits, size=target, mode="bilinear", align_corners=True)
    return stretched[..., : size[0], : size[1]]


def rows_at_label(logits: Tensor, size: tuple[int, int], protocol: Protocol, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of at_label with label=exact: (B, C, stop - start, W).

    What the input shows of the image (EvalTransform.inner) is resized back, pixel centres to pixel centres, as the image
    was resized into it.
    """
    height, width = EvalTransform(logits.shape[-1], protocol.resize).inner(*size)
    shown = at_least_float32(logits)[..., :height, :width]
    place = (torch.arange(start, stop, device=shown.device) + 0.5) * (height / size[0]) - 0.5
    above = place.clamp(0, height - 1).floor().long()
    below = (above + 1).clamp(max=height - 1)
    weight = (place.clamp(0, height - 1) - above).to(shown.dtype)[:, None]
    rows = shown[..., above, :] * (1 - weight) + shown[..., below, :] * weight
    return F.interpolate(rows, size=(stop - start, size[1]), mode="bilinear", align_corners=False)


def label_off(size: tuple[int, int], side: int, protocol: Protocol) -> float:
    """By how many pixels of a label of `size` (H, W) label=original moves what lies at its lower or right edge.

    side: of the input. 0 for other labels.
    """
    if protocol.label != "original":
        return 0.0
    inner = EvalTransform(side, protocol.resize).inner(*size)
    target = (max(size), max(size)) if protocol.resize == "pad" else size
    places = [(n - 1) * (full - 1) / (side - 1) for n, full in zip(inner, target)]
    return max(abs(length - 1 - place) for length, place in zip(size, places))
