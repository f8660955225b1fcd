"""A stage as it was before a tuning came, for whatever holds on to the pretrained network."""

from __future__ import annotations

from torch import nn

from fss_svf import svf
from fss_svf.tuning.adapter import Adapter
from fss_svf.tuning.lora import LoRAConv2d, leave_lora


def pretrained_copy(module: nn.Module) -> nn.Module:
    """A copy of `module` of plain layers, without what a tuning put beside its weights. The module stays.

    The weights are the module's own: where a tuning trains them in place, take the copy before the training.
    """
    duplicate = svf.plain_copy(module)
    for part in list(duplicate.modules()):
        if isinstance(part, LoRAConv2d):
            leave_lora(part)
        for name, child in list(part.named_children()):
            if isinstance(child, Adapter):
                delattr(part, name)
    return duplicate
