"""tuning=svf: the singular values of the chosen layers train, everything else is frozen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fss_svf import distributed
from fss_svf import svf as svf_library
from fss_svf.backbones.backbone import Backbone
from fss_svf.config import require
from fss_svf.errors import ConfigError
from fss_svf.registry import TUNINGS
from fss_svf.tuning.stages import pattern_of


@dataclass(frozen=True)
class SVFOptions:
    """include and exclude are regular expressions searched in layer names; what is frozen is not decomposed.

    include          None: the layers of the backbone's tuned_stages. Queries and keys must be named: svf/choosing.py
    rank             null, a number, a fraction, "energy:SHARE", or a mapping of patterns to these: svf/rank.py
    rank_multiple    1 is exact. 4 drops singular values as the official code does (facts: 3 of 27 in a deep stem)
    train            one or more of S, U, V; the method of the paper is S alone
    parametrisation  how S is written as a parameter: docs/svf.md
    execution        how a training step runs: docs/svf.md
    cache            a folder for factors on disk; auto: the user's cache folder; null: none
    frozen           patterns of layers that are cut to the rank like the others, but do not train. None: of all stages but
                     the tuned_stages
    """

    include: tuple[str, ...] | None
    exclude: tuple[str, ...]
    rank: Any
    rank_multiple: int
    # Checkpoints from before these keys have none of them.
    train: tuple[Literal["S", "U", "V"], ...] = ("S",)
    parametrisation: Literal["direct", "scale", "log"] = "direct"
    execution: Literal["auto", "factored", "rebuilt"] = "auto"
    cache: Literal["auto"] | Path | None = None
    frozen: tuple[str, ...] | None = ()

    def __post_init__(self) -> None:
        try:
            svf_library.parse_ranks(self.rank)
        except ValueError as error:
            raise ConfigError(f"rank: {error}") from None
        require(self.rank_multiple >= 1, "rank_multiple", "a whole number >= 1", self.rank_multiple)
        once = bool(self.train) and len(set(self.train)) == len(self.train)
        require(once, "train", "one or more of S, U, V, each once", list(self.train))
        # Without patterns include is every layer already.
        fits = self.include is None or bool(self.include) or self.frozen == ()
        require(fits, "frozen", "none where include is empty", self.frozen and list(self.frozen))


# The official code's ranks, of every stage, as a row of its own in tables.
@TUNINGS.register("svf_official", SVFOptions)
@TUNINGS.register("svf", SVFOptions)
def svf(backbone: Backbone, options: SVFOptions) -> None:
    """Decompose the backbone in place and leave only its factors trainable, as `train` says.

    Raises ConfigError for a pattern without a match and a rank that a layer does not have.
    """
    backbone.requires_grad_(False)
    include, frozen = _patterns(backbone, options)
    try:
        svf_library.decompose(
            backbone.body,
            (*include, *frozen),
            options.exclude,
            options.rank,
            options.rank_multiple,
            options.train,
            options.parametrisation,
            options.execution,
            svf_library.default_cache() if options.cache == "auto" else options.cache,
            progress=distributed.rank() == 0,
        )
    except re.error as error:
        raise ConfigError(
            f"tuning.include, exclude, frozen: {error.pattern!r} is not a regular expression: {error}"
        ) from None
    except ValueError as error:
        raise ConfigError(f"tuning: {error}") from None
    for name, layer in svf_library.layers(backbone.body):
        # A pattern of a qkv layer's name is about its parts too.
        names = (name, name.rpartition(".")[0]) if isinstance(layer, svf_library.SVFRows) else (name,)
        if any(re.search(pattern, one) for pattern in frozen for one in names):
            layer.requires_grad_(False)


def _patterns(backbone: Backbone, options: SVFOptions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The patterns of include and frozen."""
    tuned = backbone.tuned_stages
    others = [name for name in backbone.stages if name not in tuned]
    include, frozen = options.include, options.frozen
    if include is None:
        include = (pattern_of(backbone, tuned),)
    if frozen is None:
        frozen = (pattern_of(backbone, others),) if others else ()
    return include, frozen
