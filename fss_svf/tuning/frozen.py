"""tuning=frozen: nothing in the backbone trains."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fss_svf.registry import TUNINGS


@dataclass(frozen=True)
class FrozenOptions:
    """No options."""


@TUNINGS.register("frozen", FrozenOptions)
def frozen(backbone: nn.Module, options: FrozenOptions) -> None:
    """Freeze every parameter."""
    backbone.requires_grad_(False)
