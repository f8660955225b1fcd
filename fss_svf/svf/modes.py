"""Merging, unmerging and disabling SVF layers, and leaving them behind."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fss_svf.svf.decompose import layers
from fss_svf.svf.layers import become_plain


def merge(module: nn.Module) -> nn.Module:
    """Store every layer's effective weight, so that a forward is that of the plain layer. Returns `module`.

    Training goes on after unmerge; S changed while merged takes effect at the next merge or unmerge.
    """
    with torch.no_grad():
        for _, layer in layers(module):
            layer._merged = layer.effective_weight().clone()
    return module


def unmerge(module: nn.Module) -> nn.Module:
    """Undo merge, bit for bit: S, U and Vh were never changed by it. Returns `module`."""
    for _, layer in layers(module):
        layer._merged = None
    return module


@contextmanager
def disabled(module: nn.Module) -> Iterator[nn.Module]:
    """Within the context the model applies its pretrained weights, bit for bit (BAM's base branch)."""
    before = [(layer, layer._disabled) for _, layer in layers(module)]
    try:
        for layer, _ in before:
            layer._disabled = True
        yield module
    finally:
        for layer, was in before:
            layer._disabled = was


def plain_copy(module: nn.Module) -> nn.Module:
    """A copy of `module` as it was before decompose: plain layers with the pretrained weights. The module stays."""
    duplicate = copy.deepcopy(module)
    for _, layer in list(layers(duplicate)):
        become_plain(layer)
    return duplicate


def to_plain(module: nn.Module) -> nn.Module:
    """A copy of `module` as it is now: plain layers with the tuned weights, for export. The module stays.

    Its state dict has the names of the undecomposed model's, so torchvision's model of that name loads it. The weights
    are S, U and Vh as they are, also where a merge is older. Ties stay.
    """
    duplicate = copy.deepcopy(module)
    baked: dict[int, nn.Parameter] = {}  # by U, which layers of one tie share
    with torch.no_grad():
        found = [(layer, id(layer.U), layer.effective_weight()) for _, layer in layers(duplicate)]
    for layer, tie, weight in found:
        become_plain(layer, baked.setdefault(tie, nn.Parameter(weight.clone(), requires_grad=False)))
    return duplicate
