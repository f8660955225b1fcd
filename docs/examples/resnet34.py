"""backbone=resnet34: torchvision's, dilated as the other ResNets are."""

from __future__ import annotations

from dataclasses import dataclass

import torchvision

from fss_svf.backbones.backbone import Backbone
from fss_svf.backbones.resnet import dilate_stage, split_stages
from fss_svf.backbones.weights import LoadReport, load_weights
from fss_svf.registry import BACKBONES


@dataclass(frozen=True)
class ResNet34Options:
    """weights: null (random), a torchvision weights name such as IMAGENET1K_V1, or a file."""

    weights: str | None = None


@BACKBONES.register("resnet34", ResNet34Options)
def resnet34(options: ResNet34Options) -> tuple[Backbone, LoadReport]:
    """64, 64, 128, 256, 512 channels; layer2 to layer4 at 1/8."""
    net = torchvision.models.resnet34(weights=None)
    dilate_stage(net.layer3, dilation=2, first=1)
    dilate_stage(net.layer4, dilation=4, first=2)
    report = load_weights(net, options.weights, "resnet34")
    return split_stages(net), report
