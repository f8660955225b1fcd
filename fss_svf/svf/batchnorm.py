"""Which BatchNorm modules have changed since a model was decomposed, so that an adapter can hold those."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_START = "_svf_start"  # an attribute of the module, so that it goes with copies


def batchnorms(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every BatchNorm (1d, 2d, 3d, synchronised) with its name."""
    return ((name, m) for name, m in module.named_modules() if isinstance(m, _BatchNorm))


def remember(module: nn.Module) -> None:
    """Note the state of every BatchNorm; what a first call noted stays."""
    for _, norm in batchnorms(module):
        if not hasattr(norm, _START) and not any(t.is_meta for t in norm.state_dict().values()):
            setattr(norm, _START, _digest(norm))


def changed(norm: nn.Module) -> bool:
    """Whether statistics, weight or bias differ from those remembered; True where nothing was remembered."""
    return bool(getattr(norm, _START, None) != _digest(norm))


def _digest(norm: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in norm.state_dict().items():
        if name != "num_batches_tracked":  # a counter, which no output depends on
            digest.update(value.detach().to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()
