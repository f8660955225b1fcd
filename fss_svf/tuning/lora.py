"""tuning=lora: a change of low rank to every convolution trains, the pretrained weight is frozen.

Source: LoRA (arXiv 2106.09685), section 4.1; for a convolution A is a k x k convolution to `rank` channels, B a 1x1 one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from fss_svf.backbones.backbone import Backbone
from fss_svf.config import require
from fss_svf.precision import in_float32
from fss_svf.registry import TUNINGS
from fss_svf.tuning.stages import StageOptions, apart, chosen


@dataclass(frozen=True)
class LoRAOptions(StageOptions):
    """rank: of the change. alpha: the change is scaled by alpha / rank."""

    rank: int = 4
    alpha: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rank >= 1, "rank", "a whole number >= 1", self.rank)
        require(self.alpha > 0, "alpha", "a number > 0", self.alpha)


class LoRAConv2d(nn.Conv2d):
    """A Conv2d of groups=1 whose weight is W + alpha / rank B A. Do not instantiate; become_lora converts a layer.

    weight  W (Cout, Cin, k, k), the pretrained weight, frozen
    lora_a  A (rank, Cin, k, k), starts as a convolution's weight does
    lora_b  B (Cout, rank), starts at zero, so that the effective weight starts at W to the bit
    """

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    lora_scale: float

    def effective_weight(self) -> Tensor:
        """W + alpha / rank B A, (Cout, Cin, k, k): one convolution, in training and in evaluation alike."""
        with in_float32(self.weight.device):
            change = self.lora_b @ self.lora_a.flatten(1)
            return self.weight + self.lora_scale * change.view_as(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.effective_weight(), self.bias)


def become_lora(conv: nn.Conv2d, rank: int, alpha: float) -> None:
    """Turn a Conv2d into a LoRAConv2d in place: as with SVF layers its class changes and the object stays."""
    assert conv.groups == 1, "a grouped convolution has a change of low rank for each group"
    weight = conv.weight
    a, b = weight.new_empty(rank, *weight.shape[1:]), weight.new_zeros(weight.shape[0], rank)
    with apart():
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    conv.__class__ = LoRAConv2d
    assert isinstance(conv, LoRAConv2d)
    conv.lora_a, conv.lora_b, conv.lora_scale = nn.Parameter(a), nn.Parameter(b), alpha / rank


def leave_lora(conv: LoRAConv2d) -> None:
    """Undo become_lora: a Conv2d with the pretrained weight."""
    for name in ("lora_a", "lora_b", "lora_scale"):
        delattr(conv, name)
    conv.__class__ = nn.Conv2d  # type: ignore[assignment]


@TUNINGS.register("lora", LoRAOptions)
def lora(backbone: Backbone, options: LoRAOptions) -> None:
    """Freeze the backbone and give every convolution of the chosen stages a change of low rank.

    Grouped convolutions stay as they are: a depthwise one has a matrix of one row a channel, whose rank is 1 already.
    """
    for stage in chosen(backbone, options):
        for module in stage.modules():
            if type(module) is nn.Conv2d and module.groups == 1:
                become_lora(module, options.rank, options.alpha)
