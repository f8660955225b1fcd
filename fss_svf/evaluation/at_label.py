"""Logits in the size and place of the label that a protocol counts on."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fss_svf.config import Protocol
from fss_svf.methods.blocks import at_least_float32


def at_label(logits: Tensor, size: tuple[int, int], protocol: Protocol) -> Tensor:
    """(B, C, h, w) logits of one image as float32 or wider (B, C, H, W), where its original label is of `size` (H, W).

    With label=original they are stretched as in the official code: see conf/protocol/svf.yaml.
    """
    logits = at_least_float32(logits)
    if protocol.label == "resized":
        return logits
    # With pad, the label stands in a square of its longer side, and the whole padded input is stretched to it.
    target = (max(size), max(size)) if protocol.resize == "pad" else size
    stretched = F.interpolate(logits, size=target, mode="bilinear", align_corners=True)
    return stretched[..., : size[0], : size[1]]
