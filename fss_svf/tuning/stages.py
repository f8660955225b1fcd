"""What tunings that work stage by stage share: the option, and the error where a stage holds nothing for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from fss_svf.backbones.backbone import Backbone
from fss_svf.config import require
from fss_svf.errors import ConfigError

Stage = Literal["layer0", "layer1", "layer2", "layer3", "layer4"]


@dataclass(frozen=True)
class StageOptions:
    """stages: those of the backbone that the tuning reaches; the others are frozen. Default: those of SVF."""

    stages: tuple[Stage, ...] = ("layer2", "layer3", "layer4")

    def __post_init__(self) -> None:
        once = bool(self.stages) and len(set(self.stages)) == len(self.stages)
        require(once, "stages", "one or more of layer0 to layer4, each once", list(self.stages))


def chosen(backbone: Backbone, options: StageOptions) -> list[nn.Module]:
    """The chosen stages, of a backbone that is frozen from now on."""
    backbone.requires_grad_(False)
    return [getattr(backbone, name) for name in options.stages]


def require_found(found: object, what: str, options: StageOptions) -> None:
    """Raise ConfigError where the chosen stages hold nothing that the tuning could train."""
    if not found:
        raise ConfigError(
            f"tuning.stages: no {what} in {', '.join(options.stages)} of this backbone, so nothing would train there; "
            "choose other stages or another tuning"
        )


@contextmanager
def apart() -> Iterator[None]:
    """Within the context random numbers are drawn aside, so that a seed gives the head the same start in every tuning."""
    with torch.random.fork_rng(devices=[]):
        yield
