"""ResNets from torchvision's modules, dilated and with the stems that few-shot segmentation uses."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from operator import mul
from typing import Literal

import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from fss_svf.backbones.backbone import Backbone, Sizes, Tap
from fss_svf.backbones.joined import JoinedStage, join_units
from fss_svf.backbones.stages import ALIGNED, STAGES, StageBackbone
from fss_svf.backbones.weights import LoadReport, load_weights
from fss_svf.config import require
from fss_svf.registry import BACKBONES

Dilation = Literal["pfenet", "torchvision", "none"]


@dataclass(frozen=True)
class ResNetOptions:
    """weights: null (random), a torchvision weights name such as IMAGENET1K_V1, or a file.

    dilation      pfenet: 2 throughout layer3, 4 throughout layer4 (PFENet, BAM). torchvision: the first block of a
                  stage keeps the dilation before it, 1 and 2 (replace_stride_with_dilation; SVF's baseline and PFENet).
                  none: strides 4, 8, 16 and 32, sides rounded up (HSNet, DCAMA)
    stem          standard: one 7x7 convolution. deep: three 3x3 (semseg's resnet50_v2)
    stride_in_1x1 a bottleneck's stride is on its first 1x1 convolution (Caffe) instead of the 3x3 (torchvision)
    """

    weights: str | None = None
    dilation: Dilation = "torchvision"
    stem: Literal["standard", "deep"] = "standard"
    stride_in_1x1: bool = False


@BACKBONES.register("resnet18", ResNetOptions)
def resnet18(options: ResNetOptions) -> tuple[Backbone, LoadReport]:
    """ResNet-18 of BasicBlocks, 64 to 512 channels."""
    return _build("resnet18", options)


@BACKBONES.register("resnet50", ResNetOptions)
def resnet50(options: ResNetOptions) -> tuple[Backbone, LoadReport]:
    """ResNet-50 of bottlenecks, 256 to 2048 channels."""
    return _build("resnet50", options)


@BACKBONES.register("resnet101", ResNetOptions)
def resnet101(options: ResNetOptions) -> tuple[Backbone, LoadReport]:
    """ResNet-101 of bottlenecks, 256 to 2048 channels."""
    return _build("resnet101", options)


def _build(name: str, options: ResNetOptions) -> tuple[Backbone, LoadReport]:
    net: ResNet = torchvision.models.get_model(name, weights=None)
    if not isinstance(net.layer1[0], Bottleneck):
        require(options.stem == "standard", "stem", f"standard for {name}, which has no bottlenecks", options.stem)
        require(not options.stride_in_1x1, "stride_in_1x1", f"false for {name}, which has no bottlenecks", True)
    if options.stem == "deep":
        _deepen_stem(net)
    if options.stride_in_1x1:
        _move_stride_to_1x1(net)
    if options.dilation != "none":
        for stage, dilation in ((net.layer3, 2), (net.layer4, 4)):
            dilate_stage(stage, dilation, first=dilation // 2 if options.dilation == "torchvision" else dilation)
    report = load_weights(net, options.weights, name)
    return split_stages(net), report


def split_stages(net: nn.Module) -> StageBackbone:
    """A torchvision ResNet as a Backbone. Everything before layer1 becomes layer0; the classifier is dropped."""
    children = dict(net.named_children())
    stem = OrderedDict((n, m) for n, m in children.items() if not n.startswith("layer") and n not in ("avgpool", "fc"))
    stages = {"layer0": nn.Sequential(stem), **{f"layer{i}": getattr(net, f"layer{i}") for i in (1, 2, 3, 4)}}
    stem_channels = [m for m in stem.values() if isinstance(m, nn.Conv2d)][-1].out_channels
    channels = [stem_channels, *(_out_channels(stages[name]) for name in STAGES[1:])]
    strides = list(accumulate((_stride(stage) for stage in stages.values()), mul))
    join_units(nn.ModuleDict(stages))
    sums: dict[str, Tap] = {}
    for name, *tap in zip(STAGES[1:], channels[1:], strides[1:]):
        stages[name].__class__ = JoinedStage
        sums |= {f"{name}.{block}": Tap(*tap) for block, _ in stages[name].named_children()}
    # A network that is not dilated rounds sides up at every stride, so that no size has both grids' corners in common.
    return StageBackbone(stages, channels, strides, sums, ALIGNED if strides[-1] == ALIGNED.step else Sizes())


def _stride(stage: nn.Module) -> int:
    """How many times smaller a stage makes its input: by all strides but those of shortcuts."""
    strides = [
        m.stride if isinstance(m.stride, int) else m.stride[0]
        for name, m in stage.named_modules()
        if isinstance(m, (nn.Conv2d, nn.MaxPool2d)) and "downsample" not in name
    ]
    return prod(strides)


def _out_channels(stage: nn.Module) -> int:
    block = list(stage.children())[-1]
    last: nn.Conv2d = block.conv3 if isinstance(block, Bottleneck) else block.conv2  # type: ignore[assignment]
    return last.out_channels


def dilate_stage(stage: nn.Module, dilation: int, first: int) -> None:
    """Remove the stride of a stage and dilate its 3x3 convolutions: the first block by `first`, the others by `dilation`."""
    for i, block in enumerate(stage.children()):
        for conv in (m for m in block.modules() if isinstance(m, nn.Conv2d)):
            conv.stride = (1, 1)
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (first, first) if i == 0 else (dilation, dilation)


def _move_stride_to_1x1(net: ResNet) -> None:
    for stage in (net.layer2, net.layer3, net.layer4):
        block = stage[0]
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


def _deepen_stem(net: ResNet) -> None:
    """semseg's deep stem: 3x3/2 to 64, 3x3 to 64, 3x3 to 128, each with BatchNorm and ReLU, then the max pool."""
    pool, stages = net.maxpool, [net.layer1, net.layer2, net.layer3, net.layer4]
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        delattr(net, name)
    sizes = ((3, 64, 2), (64, 64, 1), (64, 128, 1))
    for i, (inputs, outputs, stride) in enumerate(sizes, 1):
        net.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False))
        net.add_module(f"bn{i}", nn.BatchNorm2d(outputs))
        net.add_module(f"relu{i}", nn.ReLU(inplace=True))
    net.add_module("maxpool", pool)
    for i, stage in enumerate(stages, 1):
        net.add_module(f"layer{i}", stage)
    first = net.layer1[0]
    for module, name in ((first, "conv1"), (first.downsample, "0")):
        old = getattr(module, name)
        new = nn.Conv2d(128, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False)
        setattr(module, name, new)


@dataclass(frozen=True)
class TinyOptions:
    """`width` is the channel number of layer1; it doubles from stage to stage."""

    weights: str | None = None
    width: int = 16


@BACKBONES.register("tiny", TinyOptions)
def tiny(options: TinyOptions) -> tuple[Backbone, LoadReport]:
    """A ResNet with one BasicBlock a stage, for tests; dilated as torchvision does."""
    w = options.width
    stem = OrderedDict(
        conv1=nn.Conv2d(3, w, 3, stride=2, padding=1, bias=False),
        bn1=nn.BatchNorm2d(w),
        relu=nn.ReLU(inplace=True),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1),
    )
    net = nn.Sequential(stem)
    inputs = w
    for i, outputs in enumerate((w, 2 * w, 4 * w, 8 * w), 1):
        stride = 1 if i == 1 else 2
        shortcut = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        net.add_module(f"layer{i}", nn.Sequential(BasicBlock(inputs, outputs, stride, shortcut)))
        inputs = outputs
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    dilate_stage(net.get_submodule("layer3"), 2, first=1)
    dilate_stage(net.get_submodule("layer4"), 4, first=2)
    report = load_weights(net, options.weights, "tiny")
    return split_stages(net), report
