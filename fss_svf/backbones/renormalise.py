"""From ImageNet's normalisation, which the loaders apply, to that of a network's own training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fss_svf.episode import IMAGENET_MEAN, IMAGENET_STD


class Renormalise(nn.Module):
    """Converts (B, 3, H, W) from ImageNet's mean and deviation to these."""

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        # On the CPU even when a checkpoint's model is built on the meta device: these buffers are not in a state dict, so
        # loading does not fill them.
        before, after = (torch.tensor(pair, device="cpu") for pair in ((IMAGENET_MEAN, IMAGENET_STD), (mean, std)))
        self.register_buffer("scale", (before[1] / after[1]).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((before[0] - after[0]) / after[1]).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift
