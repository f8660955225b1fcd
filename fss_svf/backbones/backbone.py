"""What every backbone is: five stages in a row, layer0 (the stem) to layer4."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

STAGES = ("layer0", "layer1", "layer2", "layer3", "layer4")


class Backbone(nn.Module):
    """Stages layer0..layer4 as submodules of those names; parameters keep torchvision's names inside them.

    channels  output channels of each stage
    stride    output stride of layer3 (and of layer4): 8 for the dilated ResNets, 16 for VGG
    """

    layer0: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(self, stages: Mapping[str, nn.Module], channels: Mapping[str, int], stride: int) -> None:
        super().__init__()
        assert tuple(stages) == STAGES, f"a backbone has the stages {STAGES}, got {tuple(stages)}"
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.channels = dict(channels)
        self.stride = stride

    def forward(self, images: Tensor, last: str = "layer4") -> dict[str, Tensor]:
        """Run the stages up to `last`. images: (B, 3, H, W) normalised float; returns each stage's output by name."""
        outputs: dict[str, Tensor] = OrderedDict()
        x = images
        for name in STAGES[: STAGES.index(last) + 1]:
            x = getattr(self, name)(x)
            outputs[name] = x
        return outputs
