"""tuning=first_conv: the first convolution of every chosen stage trains."""

from __future__ import annotations

from torch import nn

from fss_svf.backbones.backbone import Backbone
from fss_svf.registry import TUNINGS
from fss_svf.tuning.stages import StageOptions, chosen


@TUNINGS.register("first_conv", StageOptions)
def first_conv(backbone: Backbone, options: StageOptions) -> None:
    """Freeze the backbone but for these convolutions, with their biases where they have some (VGG's)."""
    for stage in chosen(backbone, options).values():
        first = next(module for module in stage.modules() if isinstance(module, nn.Conv2d))
        first.requires_grad_(True)
