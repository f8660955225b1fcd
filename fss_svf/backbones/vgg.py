"""VGG16: with BatchNorm, in the stages of semseg and PFENet; and without, with the pools and dilation of PANet, or plain."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torchvision
from torch import nn
from torchvision.models import VGG

from fss_svf.backbones.backbone import Backbone, Sizes, Tap
from fss_svf.backbones.joined import join_units
from fss_svf.backbones.stages import ALIGNED, STAGES, StageBackbone
from fss_svf.backbones.weights import VGG16_BLOCKS, LoadReport, load_weights
from fss_svf.registry import BACKBONES

# The layers of torchvision's vgg16_bn.features in each stage. Stages 0-3 end with their max pool; the last is dropped.
_CUTS = ((0, 7), (7, 14), (14, 24), (24, 34), (34, 43))


@dataclass(frozen=True)
class VGGOptions:
    """weights: null (random), a torchvision weights name such as IMAGENET1K_V1, or a file."""

    weights: str | None = None


@BACKBONES.register("vgg16", VGGOptions)
def vgg16(options: VGGOptions) -> tuple[Backbone, LoadReport]:
    """VGG16-bn: 64, 128, 256, 512, 512 channels; layer2 at 1/8, layer3 and layer4 at 1/16. Pools round up (semseg)."""
    net = _network("vgg16_bn")
    report = load_weights(net, options.weights, "vgg16")
    for layer in net.features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    return _cut(net.features, _CUTS, strides=(2, 4, 8, 16, 16)), report


@BACKBONES.register("vgg16_plain", VGGOptions)
def vgg16_plain(options: VGGOptions) -> tuple[Backbone, LoadReport]:
    """PANet's VGG16 without BatchNorm: 64, 128, 256, 512, 512 channels; layer0 at 1/2, layer1 at 1/4, the rest at 1/8.

    Stages 0-3 end with a 3x3 max pool of padding 1 and stride 2, in stage 3 of stride 1. layer4 is dilated by 2 and ends
    without ReLU, so that its features have both signs: PANet's feature map. `weights` may also be a PANet checkpoint.
    Source: PANet (ICCV 2019, arXiv 1908.06391), and the behaviour of its encoder.
    """
    net = _network("vgg16")
    report = load_weights(net, options.weights, "vgg16_plain")
    pools = [layer for layer in net.features if isinstance(layer, nn.MaxPool2d)]
    for pool, stride in zip(pools, (2, 2, 2, 1)):
        pool.kernel_size, pool.stride, pool.padding = 3, stride, 1
    last_conv = 28
    for layer in net.features[VGG16_BLOCKS[4] : last_conv + 1]:
        if isinstance(layer, nn.Conv2d):
            layer.dilation = layer.padding = (2, 2)
    ends = (*VGG16_BLOCKS[1:], last_conv + 1)
    return _cut(net.features, list(zip(VGG16_BLOCKS, ends)), strides=(2, 4, 8, 8, 8)), report


@BACKBONES.register("vgg16_hsnet", VGGOptions)
def vgg16_hsnet(options: VGGOptions) -> tuple[Backbone, LoadReport]:
    """HSNet's VGG16, torchvision's without BatchNorm as it is: 64, 128, 256, 512, 512 channels; layer2 at 1/8, layer3 at
    1/16, layer4 at 1/32. Each stage ends with its 2x2 max pool, which rounds sides down.

    Source: HSNet (ICCV 2021, arXiv 2104.01538), and the behaviour of its code.
    """
    net = _network("vgg16")
    report = load_weights(net, options.weights, "vgg16_hsnet")
    cuts = list(zip(VGG16_BLOCKS, (*VGG16_BLOCKS[1:], len(net.features))))
    return _cut(net.features, cuts, strides=(2, 4, 8, 16, 32), sizes=Sizes()), report


def _network(name: str) -> VGG:
    """torchvision's network, whose layers start as torchvision's do. Its classifier stays without values: a backbone drops
    it, and to draw its 120 million values would take seconds."""
    device = torch.empty(0).device
    with torch.device("meta"):
        net: VGG = torchvision.models.get_model(name, weights=None)
    net.to_empty(device=device)
    for layer in net.features:
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:  # as each of them has
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
    return net


def _cut(
    features: nn.Sequential, cuts: Sequence[tuple[int, int]], strides: Sequence[int], sizes: Sizes = ALIGNED
) -> StageBackbone:
    """Slices of torchvision's `features` as stages. Layers keep their numbers. strides: of each stage's output."""
    layers = list(features.named_children())
    stages: dict[str, nn.Module] = {
        f"layer{i}": nn.Sequential(OrderedDict(layers[a:b])) for i, (a, b) in enumerate(cuts)
    }
    channels = (64, 128, 256, 512, 512)
    join_units(nn.ModuleDict(stages))
    sums: dict[str, Tap] = {}
    for stage, width, stride in zip(STAGES, channels, (1, *strides)):  # a stage's pool is its last layer
        inside = [(n, layer) for n, layer in stages[stage].named_children() if not isinstance(layer, nn.BatchNorm2d)]
        before_relu = [name for (name, _), (_, after) in pairwise(inside) if isinstance(after, nn.ReLU)]
        sums |= {f"{stage}.{name}": Tap(width, stride) for name in before_relu}
    return StageBackbone(stages, channels, strides, sums, sizes)
