"""How far the singular values of a backbone have moved."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fss_svf import svf
from fss_svf.backbones.backbone import Backbone

_TENTHS = 10


def drift_by_size(backbone: Backbone) -> dict[str, float]:
    """What large and small singular values did: mean/1, std/1 to mean/10, std/10 of S / S0 - 1, the largest tenth first.

    The tenths are those of a layer, by S0; their numbers are means over the layers of ten values or more that have moved.
    Empty where there is none.
    """
    means, deviations = [], []
    for layer in (layer for _, layer in svf.layers(backbone) if "S" in layer.form.train):
        drift = svf.relative_drift(layer).flatten()
        if len(drift) >= _TENTHS and drift.any() and drift.isfinite().all():
            tenths = drift[layer.S0.flatten().argsort(descending=True)].tensor_split(_TENTHS)
            means.append(torch.stack([tenth.mean() for tenth in tenths]))
            deviations.append(torch.stack([tenth.std(correction=0) for tenth in tenths]))
    if not means:
        return {}
    found = {"mean": torch.stack(means).mean(0).tolist(), "std": torch.stack(deviations).mean(0).tolist()}
    return {f"{key}/{tenth}": value for key, values in found.items() for tenth, value in enumerate(values, 1)}


def drift_by_stage(backbone: Backbone) -> dict[str, np.ndarray]:
    """The relative drift S / S0 - 1 of all singular values in each stage, (N,) finite; only of layers that train S."""
    found = {}
    for stage, module in backbone.stages.items():
        drifts: list[Tensor] = [svf.relative_drift(x) for _, x in svf.layers(module) if "S" in x.form.train]
        if drifts:
            values = torch.cat([drift.flatten() for drift in drifts])
            found[stage] = values[values.isfinite()].cpu().numpy()
    return {stage: values for stage, values in found.items() if values.size}
