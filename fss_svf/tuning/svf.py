"""tuning=svf: the singular values of the chosen convolutions train, everything else is frozen."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from fss_svf import svf as svf_library
from fss_svf.config import require
from fss_svf.errors import ConfigError
from fss_svf.registry import TUNINGS


@dataclass(frozen=True)
class SVFOptions:
    """include and exclude are regular expressions searched in layer names; what is frozen is not decomposed.

    rank_multiple  1 is exact. 4 drops singular values as the official code does (facts: 3 of 27 in a deep stem)
    """

    include: tuple[str, ...]
    exclude: tuple[str, ...]
    rank: int | None
    rank_multiple: int

    def __post_init__(self) -> None:
        require(self.rank is None or self.rank >= 1, "rank", "null (full) or a whole number >= 1", self.rank)
        require(self.rank_multiple >= 1, "rank_multiple", "a whole number >= 1", self.rank_multiple)


@TUNINGS.register("svf", SVFOptions)
def svf(backbone: nn.Module, options: SVFOptions) -> None:
    """Decompose the backbone in place and leave only S trainable. Raises ConfigError for a pattern without a match."""
    backbone.requires_grad_(False)
    try:
        svf_library.decompose(
            backbone, options.include, options.exclude, options.rank, options.rank_multiple, progress=True
        )
    except re.error as error:
        raise ConfigError(
            f"tuning.include, tuning.exclude: {error.pattern!r} is not a regular expression: {error}"
        ) from None
    except ValueError as error:
        raise ConfigError(f"tuning: {error}") from None
