"""tuning=lora: a change of low rank to convolutions and linear layers trains, the pretrained weight is frozen.

Source: LoRA (arXiv 2106.09685), section 4.1; for a convolution A is a k x k convolution to `rank` channels, B a 1x1 one.
Of an attention the queries and values are changed and the keys are not, as there (section 7.1: the best pair); of a
transformer's other linear layers all are, as QLoRA (arXiv 2305.14314, section 4) found to be needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss_svf.attention import attention_layers
from fss_svf.backbones.backbone import Backbone
from fss_svf.config import require
from fss_svf.precision import in_float32
from fss_svf.registry import TUNINGS
from fss_svf.tuned import TunedConv2d, TunedLinear, TunedQKV, TunedWeight, become
from fss_svf.tuning.stages import StageOptions, apart, chosen, require_found


@dataclass(frozen=True)
class LoRAOptions(StageOptions):
    """rank: of the change. alpha: the change is scaled by alpha / rank."""

    rank: int = 4
    alpha: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rank >= 1, "rank", "a whole number >= 1", self.rank)
        require(self.alpha > 0, "alpha", "a number > 0", self.alpha)


class LoRALayer(TunedWeight):
    """What the layers below share: a weight W + alpha / rank B A. Do not instantiate; become_lora converts a layer.

    lora_a  A, starts as a layer's weight does
    lora_b  B, starts at zero, so that the effective weight starts at W to the bit
    """

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    lora_scale: float

    @property
    def own(self) -> tuple[str, ...]:
        return "lora_a", "lora_b", "lora_scale"

    def change(self) -> Tensor:
        """alpha / rank B A, of the weight's shape."""
        return self.lora_scale * (self.lora_b @ self.lora_a.flatten(1)).view_as(self.pretrained)

    def effective_weight(self) -> Tensor:
        with in_float32(self.pretrained.device):
            return self.pretrained + self.change()

    def _adds(self) -> bool:
        """Whether a forward adds the change of the output, which needs no gradient of a whole weight."""
        return torch.is_grad_enabled() and not (self._disabled or self.merged)


class LoRAConv2d(LoRALayer, TunedConv2d):
    """A Conv2d of groups=1: A (rank, Cin, k, k), B (Cout, rank). The weight is made before convolving, always."""


class LoRALinear(LoRALayer, TunedLinear):
    """A Linear: A (rank, in), B (out, rank)."""

    def forward(self, input: Tensor) -> Tensor:
        if not self._adds():
            return super().forward(input)
        change = F.linear(F.linear(input, self.lora_a), self.lora_b)
        return F.linear(input, self.pretrained, self.bias) + self.lora_scale * change


class LoRAQKV(LoRALayer, TunedQKV):
    """The Linear (in, 3 C) of an attention, whose queries and values change: A (2, rank, in), B (2, C, rank)."""

    def change(self) -> Tensor:
        query, value = (self.lora_scale * (self.lora_b @ self.lora_a)).unbind()
        return torch.cat([query, torch.zeros_like(query), value])

    def forward(self, input: Tensor) -> Tensor:
        if not self._adds():
            return super().forward(input)
        narrow = F.linear(input, self.lora_a.flatten(0, 1)).chunk(2, -1)
        query, value = (self.lora_scale * F.linear(x, b) for x, b in zip(narrow, self.lora_b.unbind()))
        q, k, v = F.linear(input, self.pretrained, self.bias).chunk(3, -1)
        return torch.cat([q + query, k, v + value], -1)


def become_lora(layer: nn.Conv2d | nn.Linear, rank: int, alpha: float, qkv: bool = False) -> None:
    """Turn a layer into a LoRALayer in place: as with SVF layers its class changes and the object stays.

    qkv: the layer is an attention's, of queries, keys and values (attention.py).
    """
    kind: type[LoRALayer] = LoRAQKV if qkv else LoRALinear if isinstance(layer, nn.Linear) else LoRAConv2d
    assert getattr(layer, "groups", 1) == 1, "a grouped convolution has a change of low rank for each group"
    weight = layer.weight
    if qkv:
        a, b = weight.new_empty(2, rank, weight.shape[1]), weight.new_zeros(2, weight.shape[0] // 3, rank)
    else:
        a, b = weight.new_empty(rank, *weight.shape[1:]), weight.new_zeros(weight.shape[0], rank)
    with apart():
        for one in a if qkv else (a,):
            nn.init.kaiming_uniform_(one, a=math.sqrt(5))
    changed: LoRALayer = become(layer, kind)
    changed.lora_a, changed.lora_b, changed.lora_scale = nn.Parameter(a), nn.Parameter(b), alpha / rank


@TUNINGS.register("lora", LoRAOptions)
def lora(backbone: Backbone, options: LoRAOptions) -> None:
    """Freeze the backbone and give every convolution and linear layer of the chosen stages a change of low rank.

    Grouped convolutions stay as they are: a depthwise one has a matrix of one row a channel, whose rank is 1 already. So do
    the keys of an attention.
    """
    stages = chosen(backbone, options)
    roles = attention_layers(backbone)
    found = [
        module
        for stage in stages.values()
        for module in stage.modules()
        if (type(module) is nn.Linear and roles.get(id(module)) != "k")
        or (type(module) is nn.Conv2d and module.groups == 1)
    ]
    require_found(found, "convolution without groups or linear layer", stages)
    for layer in dict.fromkeys(found):
        become_lora(layer, options.rank, options.alpha, roles.get(id(layer)) == "qkv")
