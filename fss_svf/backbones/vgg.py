"""VGG16: with BatchNorm as semseg and PFENet cut it, and without as PANet reshapes it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torchvision
from torch import nn

from fss_svf.backbones.backbone import Backbone
from fss_svf.backbones.joined import join_units
from fss_svf.backbones.weights import VGG16_BLOCKS, LoadReport, load_weights
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
    report = load_weights(net, options.weights, "vgg16")
    for layer in net.features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    return _cut(net.features, _CUTS, stride=16), report


@BACKBONES.register("vgg16_plain", VGGOptions)
def vgg16_plain(options: VGGOptions) -> tuple[Backbone, LoadReport]:
    """PANet's VGG16 without BatchNorm: 64, 128, 256, 512, 512 channels; layer0 at 1/2, layer1 at 1/4, the rest at 1/8.

    Stages 0-3 end with a 3x3 max pool of padding 1 and stride 2, in stage 3 of stride 1. layer4 is dilated by 2 and ends
    without ReLU, so that its features have both signs: PANet's feature map. `weights` may also be a PANet checkpoint.
    Source: PANet (ICCV 2019, arXiv 1908.06391), and the behaviour of its encoder.
    """
    net = torchvision.models.vgg16(weights=None)
    report = load_weights(net, options.weights, "vgg16_plain")
    pools = [layer for layer in net.features if isinstance(layer, nn.MaxPool2d)]
    for pool, stride in zip(pools, (2, 2, 2, 1)):
        pool.kernel_size, pool.stride, pool.padding = 3, stride, 1
    last_conv = 28
    for layer in net.features[VGG16_BLOCKS[4] : last_conv + 1]:
        if isinstance(layer, nn.Conv2d):
            layer.dilation = layer.padding = (2, 2)
    ends = (*VGG16_BLOCKS[1:], last_conv + 1)
    return _cut(net.features, list(zip(VGG16_BLOCKS, ends)), stride=8), report


def _cut(features: nn.Sequential, cuts: Sequence[tuple[int, int]], stride: int) -> Backbone:
    """Slices of torchvision's `features` as stages, which keep its numbers."""
    layers = list(features.named_children())
    stages = {f"layer{i}": nn.Sequential(OrderedDict(layers[a:b])) for i, (a, b) in enumerate(cuts)}
    backbone = Backbone(stages, dict(zip(stages, (64, 128, 256, 512, 512))), stride)
    join_units(backbone)
    return backbone
