"""tuning=u, v, us, sv, usv: tuning=svf with other factors than S alone, under the names of the paper's comparison.

Source: Singular Value Fine-tuning (arXiv 2206.06122), which compares U, S, V and their combinations.
"""

from __future__ import annotations

from fss_svf.backbones.backbone import Backbone
from fss_svf.config import require
from fss_svf.registry import TUNINGS
from fss_svf.tuning.svf import SVFOptions, svf


def _register(name: str) -> None:
    factors = tuple(name.upper())

    @TUNINGS.register(name, SVFOptions)
    def build(backbone: Backbone, options: SVFOptions) -> None:
        # A table names a row by its tuning: what is called U must not have trained S.
        right = set(options.train) == set(factors)
        require(right, "tuning.train", f"{list(factors)} under tuning={name} (or tuning=svf)", list(options.train))
        svf(backbone, options)


for _name in ("u", "v", "us", "sv", "usv"):
    _register(_name)
