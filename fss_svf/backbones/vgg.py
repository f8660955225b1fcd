"""VGG16 with BatchNorm, cut into stages as semseg and PFENet cut it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torchvision
from torch import nn

from fss_svf.backbones.backbone import Backbone
from fss_svf.backbones.weights import LoadReport, load_weights
from fss_svf.registry import BACKBONES

# Where torchvision's vgg16_bn.features are cut; stages 0-3 end with their max pool, the last pool is dropped.
_CUTS = ((0, 7), (7, 14), (14, 24), (24, 34), (34, 43))


@dataclass(frozen=True)
class VGGOptions:
    """weights: null (random), a torchvision weights name such as IMAGENET1K_V1, or a file."""

    weights: str | None = None


@BACKBONES.register("vgg16", VGGOptions)
def vgg16(options: VGGOptions) -> tuple[Backbone, LoadReport]:
    """VGG16-bn: 64, 128, 256, 512, 512 channels; layer2 at 1/8, layer3 and layer4 at 1/16. Pools round up (semseg)."""
    net = torchvision.models.vgg16_bn(weights=None)
    report = load_weights(net, options.weights, "vgg16_bn")
    layers = list(net.features.named_children())
    for _, layer in layers:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    stages = {f"layer{i}": nn.Sequential(OrderedDict(layers[a:b])) for i, (a, b) in enumerate(_CUTS)}
    channels = dict(zip(stages, (64, 128, 256, 512, 512)))
    return Backbone(stages, channels, stride=16), report
