"""What tunings that work stage by stage share: the option, and the error where a stage holds nothing for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from fss_svf.backbones.backbone import Backbone
from fss_svf.config import require
from fss_svf.errors import ConfigError, listing


@dataclass(frozen=True)
class StageOptions:
    """stages: those of the backbone that the tuning reaches; the others are frozen. None: the backbone's tuned_stages."""

    stages: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.stages is not None:
            once = bool(self.stages) and len(set(self.stages)) == len(self.stages)
            require(once, "stages", "null, or one or more stages, each once", list(self.stages))


def chosen(backbone: Backbone, options: StageOptions) -> dict[str, nn.Module]:
    """The chosen stages by name, of a backbone that is frozen from now on. Raises ConfigError for one that it has not."""
    backbone.requires_grad_(False)
    stages = backbone.stages
    names = backbone.tuned_stages if options.stages is None else options.stages
    unknown = [name for name in names if name not in stages]
    if unknown:
        known = listing(stages, 30)
        raise ConfigError(f"tuning.stages: this backbone has no {listing(unknown)}; choose from {known}")
    return {name: stages[name] for name in names}


def pattern_of(backbone: Backbone, names: Iterable[str]) -> str:
    """A regular expression that finds the layers of these stages by their names in the backbone's body."""
    inside = {id(module): name for name, module in backbone.body.named_modules()}
    stages = backbone.stages
    return f"^(?:{'|'.join(re.escape(inside[id(stages[name])]) for name in names)})(?:\\.|$)"


def require_found(found: object, what: str, stages: Iterable[str], instead: str = "") -> None:
    """Raise ConfigError where the chosen stages hold nothing that the tuning could train; `instead`: what to do then."""
    if not found:
        raise ConfigError(
            f"tuning.stages: no {what} in {listing(stages, 20)} of this backbone, so nothing would train there; "
            f"{instead or 'choose other stages or another tuning'}"
        )


@contextmanager
def apart() -> Iterator[None]:
    """Within the context random numbers are drawn aside, so that a seed gives the head the same start in every tuning."""
    with torch.random.fork_rng(devices=[]):
        yield
