"""tuning=full: the whole backbone trains."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fss_svf.registry import TUNINGS


@dataclass(frozen=True)
class FullOptions:
    """No options."""


@TUNINGS.register("full", FullOptions)
def full(backbone: nn.Module, options: FullOptions) -> None:
    """Train every parameter, the weights and biases of BatchNorm included; its statistics stay, as everywhere here.

    PANet, whose training this is, has no BatchNorm to go by. The parameters are what a gradient reaches; statistics of
    a batch of one episode would be noise.
    """
    backbone.requires_grad_(True)
