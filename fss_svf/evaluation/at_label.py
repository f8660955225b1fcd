"""Logits in the size and place of the label that a protocol counts on."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fss_svf.config import Protocol
from fss_svf.data.loading import EvalBatch


def at_label(logits: Tensor, batch: EvalBatch, protocol: Protocol) -> list[Tensor]:
    """(B, C, H, W) logits as float (C, H_i, W_i) of each episode, on their device."""
    logits = logits.float()
    if protocol.label == "resized":
        return list(logits)
    return [_stretch(one, mask.shape[-2:], protocol.resize) for one, mask in zip(logits, batch.original_masks)]


def _stretch(logits: Tensor, size: tuple[int, ...], resize: str) -> Tensor:
    """(C, h, w) logits as the official code stretches them to the label: see conf/protocol/svf.yaml."""
    # With pad, the label stands in a square of its longer side, and the whole padded input is stretched to it.
    target = [max(size)] * 2 if resize == "pad" else list(size)
    stretched = F.interpolate(logits[None], size=target, mode="bilinear", align_corners=True)[0]
    return stretched[:, : size[0], : size[1]]
