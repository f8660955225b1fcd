"""How far the singular values of a backbone have moved."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fss_svf import svf
from fss_svf.backbones.backbone import Backbone


def drift_by_stage(backbone: Backbone) -> dict[str, np.ndarray]:
    """The relative drift S / S0 - 1 of all singular values in each stage, (N,) finite; only of layers that train S."""
    found = {}
    for stage, module in backbone.stages.items():
        drifts: list[Tensor] = [svf.relative_drift(x) for _, x in svf.layers(module) if "S" in x.form.train]
        if drifts:
            values = torch.cat([drift.flatten() for drift in drifts])
            found[stage] = values[values.isfinite()].cpu().numpy()
    return {stage: values for stage, values in found.items() if values.size}
