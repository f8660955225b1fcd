"""The base learner: a PSPNet that segments the base classes of a fold (BAM's stage 1).

Source: BAM (CVPR 2022), section 4.2; layer shapes as in methods of its official code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss_svf.backbones.backbone import Backbone
from fss_svf.methods.blocks import resize

BINS = (1, 2, 3, 6)


class PyramidPooling(nn.Module):
    """PSPNet's pyramid: (B, C, h, w) to (B, 2C, h, w), the input beside its averages over 1, 2, 3 and 6 cells a side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = channels // len(BINS)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
            for _ in BINS
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = (branch(F.adaptive_avg_pool2d(x, size)) for size, branch in zip(BINS, self.branches))
        return torch.cat([x, *(resize(p, x.shape[-2:]) for p in pooled)], dim=1)


class BaseLearner(nn.Module):
    """Backbone, pyramid pooling and a classifier over background and `classes` base classes."""

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        channels = backbone.channels["layer4"]
        width = min(512, channels)  # 512 in BAM, for ResNet and VGG alike
        self.backbone = backbone
        self.ppm = PyramidPooling(channels)
        self.cls = nn.Sequential(
            nn.Conv2d(2 * channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.1),
            nn.Conv2d(width, classes + 1, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to logits (B, classes + 1, H, W)."""
        x = self.cls(self.ppm(self.backbone(images)["layer4"]))
        return resize(x, images.shape[-2:])
