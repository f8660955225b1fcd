"""timm's inverted residual blocks with each convolution, its BatchNorm and its ReLU6 as one step (svf/units.py).

Names, parameters and state dicts stay timm's. Source: MobileNetV2 (CVPR 2018), EfficientNet-Lite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from fss_svf.backbones.joined import Recomputable
from fss_svf.svf.units import conv_unit


@dataclass(frozen=True)
class _Step:
    """A convolution and its BatchNorm by name, whether a ReLU follows, and where that ends."""

    conv: str
    norm: str
    relu: bool
    top: float


class InvertedBlock(Recomputable, nn.Module):
    """conv_pw, conv_dw, conv_pwl of an InvertedResidual or conv_dw, conv_pw of a DepthwiseSeparableConv, each with its
    BatchNorm bn1, bn2, bn3."""

    def __init__(self, block: nn.Module) -> None:
        """block: of timm, in evaluation as in training what its convolutions, BatchNorms and ReLU6s compute."""
        super().__init__()
        self.skip = bool(block.has_skip)
        self.steps: list[_Step] = []
        conv = ""
        for name, child in block.named_children():
            if isinstance(child, nn.Conv2d):
                self.add_module(name, child)
                conv = name
            elif isinstance(child, nn.BatchNorm2d):
                relu = isinstance(child.get_submodule("act"), nn.ReLU6)
                assert relu or isinstance(child.get_submodule("act"), nn.Identity), f"{name} has another activation"
                self.add_module(name, _plain(child))
                self.steps.append(_Step(conv, name, relu, 6 if relu else math.inf))
            else:
                assert isinstance(child, nn.Identity), f"{name} is a {type(child).__name__}"

    def run(self, x: Tensor) -> Tensor:
        y = x
        for step in self.steps:
            residual = x if self.skip and step is self.steps[-1] else None
            conv, norm = self.get_submodule(step.conv), self.get_submodule(step.norm)
            y = conv_unit(conv, norm, y, step.relu, residual, step.top)
        return y


def _plain(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """The BatchNorm inside timm's BatchNormAct2d, which holds an activation too. It has the same parameters and buffers."""
    plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    plain.weight, plain.bias = norm.weight, norm.bias
    for name, value in norm.named_buffers():
        plain.register_buffer(name, value)
    return plain.train(norm.training)
