"""Turning the layers of a model into SVF layers, and merging, unmerging and disabling them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fss_svf.svf.layers import CONVERTED, PlainLayer, SVFLayer, become_plain, become_svf, factorise


def decompose(
    module: nn.Module,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    rank: int | None = None,
    rank_multiple: int = 1,
    progress: bool = False,
) -> nn.Module:
    """Convert every nn.Conv2d and nn.Linear of `module` into an SVF layer, in place; returns `module`.

    include, exclude  regular expressions, searched (re.search) in the qualified layer name such as
                      "layer2.0.conv1"; no include means every layer. A bare layer's name is "".
    rank              keep the largest `rank` singular values; None keeps all, which changes no output
    rank_multiple     floor the rank to a multiple of it (the official code uses 4); a rank below it stays
    progress          show a progress bar: the SVD of a ResNet-50 takes 4 s on one free core, and a minute or more on
                      cores that others use too (torch's threads wait for each other: set OMP_NUM_THREADS=1 there)

    The converted layers' S requires grad and their weight does not; biases and other modules stay as they are, as do
    device, dtype, training mode, hooks, and ties (a layer used twice, or two layers that share one weight).
    A module that reads a layer's weight instead of calling the layer (torchvision's Swin attention) is not reached.
    Raises ValueError for a pattern that matches no layer, a rank above a matrix's, or a weight that is not finite or
    that a hook computes (weight_norm, spectral_norm); the model is then as it was.
    """
    chosen = _choose(module, _patterns(include), _patterns(exclude))
    # All factors before the first conversion, so that an error leaves no model half converted.
    factors: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
    at_once = all(layer.weight.is_meta for _, layer in chosen)
    for name, layer in tqdm(chosen, desc="SVD", unit="layer", disable=at_once or not progress):
        weight = layer.weight
        try:
            if not isinstance(weight, nn.Parameter):
                raise ValueError(
                    "its weight is no Parameter (weight_norm or spectral_norm computes it); remove that first"
                )
            # On the meta device shapes alone are decomposed: a checkpoint fills them.
            if not weight.is_meta and not torch.isfinite(weight).all():
                raise ValueError("its weight holds NaN or infinity")
            if _tie(layer) not in factors:
                factors[_tie(layer)] = factorise(weight, _groups(layer), rank, rank_multiple)
        except ValueError as error:
            raise ValueError(f"svf.decompose: layer {name!r}: {error}") from None
    for _, layer in chosen:
        tie = _tie(layer)
        converted = become_svf(layer, _groups(layer), factors[tie])
        factors[tie] = (converted.U, converted.S, converted.Vh)  # Parameters now, shared by layers of this tie
    for parent in module.modules():
        # Its fused inference path reads the weights of linear1 and linear2 past their forward; this turns it off.
        if isinstance(parent, nn.TransformerEncoderLayer) and any(layers(parent)):
            parent.activation_relu_or_gelu = 0
    return module


def _patterns(patterns: Iterable[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _groups(layer: nn.Module) -> int:
    return getattr(layer, "groups", 1)


def _tie(layer: PlainLayer) -> tuple[int, int]:
    """Layers of the same tie share their factors."""
    return id(layer.weight), _groups(layer)


def _choose(module: nn.Module, include: list[str], exclude: list[str]) -> list[tuple[str, PlainLayer]]:
    # named_modules visits a module used twice once.
    found = [(n, m) for n, m in module.named_modules() if isinstance(m, PlainLayer) and type(m) in CONVERTED]
    for pattern in include + exclude:
        if not any(re.search(pattern, name) for name, _ in found):
            names = ", ".join(repr(name) for name, _ in found[:3])
            raise ValueError(
                f"svf.decompose: pattern {pattern!r} matches none of the {len(found)} Conv2d and Linear layers ({names}...)"
            )
    chosen = [
        (name, m)
        for name, m in found
        if (not include or any(re.search(p, name) for p in include)) and not any(re.search(p, name) for p in exclude)
    ]
    if not chosen:
        raise ValueError("svf.decompose: there is no Conv2d or Linear layer left to decompose")
    return chosen


def layers(module: nn.Module) -> Iterator[tuple[str, SVFLayer]]:
    """The SVF layers of a model with their names."""
    return ((name, m) for name, m in module.named_modules() if isinstance(m, SVFLayer))


def singular_values(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The trainable S of every SVF layer with its parameter name; tied ones once."""
    ours = {id(layer.S) for _, layer in layers(module)}  # by identity: other modules may call a parameter S too
    return ((name, p) for name, p in module.named_parameters() if id(p) in ours)


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


@dataclass(frozen=True)
class LayerReport:
    """One line of report(): rank and trainable values of a layer, and how much of its weight the cut rank lost."""

    name: str
    shape: tuple[int, ...]
    rank: int
    trainable: int
    error: float  # relative Frobenius norm of weight - U diag(S0) Vh


def report(module: nn.Module) -> list[LayerReport]:
    """A line for every SVF layer."""
    lines = []
    with torch.no_grad():
        for name, layer in layers(module):
            kept = ((layer.U * layer.S0.unsqueeze(1)) @ layer.Vh).reshape(layer.weight.shape)
            error = float((layer.weight - kept).norm() / layer.weight.norm().clamp_min(1e-30))
            lines.append(LayerReport(name, tuple(layer.weight.shape), layer.rank, layer.S.numel(), error))
    return lines
