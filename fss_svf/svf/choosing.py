"""Which layers of a model svf.decompose takes, and a warning that names what matches and cannot be taken."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from fss_svf.errors import listing
from fss_svf.svf.layers import CONVERTED, PlainLayer, SVFLayer

# PyTorch's own modules with weights that are matrices, beside Conv2d and Linear.
_OTHERS = (_ConvNd, nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
# Children of torchvision's Swin attention, which reads their weights and never calls them: S would have no effect.
_READ = {
    (attention, child)
    for attention in ("ShiftedWindowAttention", "ShiftedWindowAttentionV2")
    for child in ("qkv", "proj")
}


def plain_layers(module: nn.Module) -> list[tuple[str, PlainLayer]]:
    """The layers that decompose could convert, with their names."""
    read = {id(child) for _, child in _read_past_forward(module)}
    # named_modules visits a module used twice once.
    return [
        (n, m)
        for n, m in module.named_modules()
        if isinstance(m, PlainLayer) and type(m) in CONVERTED and id(m) not in read
    ]


def choose(module: nn.Module, include: list[str], exclude: list[str]) -> list[tuple[str, PlainLayer]]:
    """The layers whose names the patterns choose. Raises ValueError for a pattern without a match, and for no layer.

    Among them may be Conv2d and Linear that cannot be converted as they are (why_not). What matches and is another kind
    of layer is named in a warning, and so is a module that shares a chosen weight and is not chosen.
    """
    plain = {id(m) for _, m in plain_layers(module)}
    found = [(n, m) for n, m in module.named_modules() if isinstance(m, PlainLayer) and (id(m) in plain or why_not(m))]
    others = _left_out(module, {id(m) for _, m in found})
    for pattern in include + exclude:
        if not any(re.search(pattern, name) for name, _ in found) and not (
            pattern in exclude and any(re.search(pattern, name) for name, _ in others)
        ):
            names = ", ".join(repr(name) for name, _ in found[:3])
            only = [f"{name} ({kind})" for name, kind in others if re.search(pattern, name)]
            raise ValueError(
                f"svf.decompose: pattern {pattern!r} matches none of the {len(found)} Conv2d and Linear layers "
                f"({names}...)" + (f", but {listing(only, 3)}, which cannot be decomposed" if only else "")
            )

    def matches(name: str) -> bool:
        included = not include or any(re.search(p, name) for p in include)
        return included and not any(re.search(p, name) for p in exclude)

    chosen = [(name, m) for name, m in found if matches(name)]
    if not chosen:
        raise ValueError("svf.decompose: there is no Conv2d or Linear layer left to decompose")
    left = [f"{name} ({kind})" for name, kind in others if matches(name)]
    if left:
        warnings.warn(
            f"svf.decompose: {listing(left)} match and are left as they are, since only Conv2d and Linear themselves are "
            "decomposed; name them in `exclude` to leave them out without this warning",
            stacklevel=3,
        )
    _warn_of_ties(module, chosen)
    return chosen


def why_not(layer: nn.Module) -> str:
    """Why a Conv2d or Linear can be converted only after the caller has done something; empty where it can."""
    if isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():
        return "it is lazy and has no weight yet; run a forward first"
    if parametrize.is_parametrized(layer) and parametrize.type_before_parametrizations(layer) in CONVERTED:
        return "torch.nn.utils.parametrize computes its weight or bias; remove that first (remove_parametrizations)"
    if type(layer) in CONVERTED and not isinstance(layer.weight, nn.Parameter):
        return "its weight is no Parameter (weight_norm, spectral_norm or prune computes it); remove that first"
    return ""


def _left_out(module: nn.Module, found: set[int]) -> list[tuple[str, str]]:
    """Modules with a matrix for a weight that are neither SVF layers nor in `found`: name and kind."""
    read = {id(child): parent for parent, child in _read_past_forward(module)}
    left = []
    for name, m in module.named_modules():
        if id(m) in found or isinstance(m, SVFLayer):
            continue
        kind, weight = type(m), m._parameters.get("weight")
        foreign = not kind.__module__.startswith("torch.") and not isinstance(m, nn.Embedding)
        if id(m) in read:
            left.append((name, f"{kind.__name__}, whose weight {type(read[id(m)]).__name__} reads without calling it"))
        elif (
            isinstance(m, _OTHERS)
            or (".quantized." in f"{kind.__module__}." and hasattr(m, "weight"))
            or (foreign and weight is not None and weight.dim() >= 2)
        ):
            base = next((b.__name__ for b in (nn.Conv2d, nn.Linear) if isinstance(m, b)), "")
            left.append((name, f"{kind.__name__}, a subclass of {base}" if base else kind.__name__))
    return left


def _read_past_forward(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Parent and child where the parent reads the child's weight itself."""
    for parent in module.modules():
        for name, child in parent.named_children():
            if (type(parent).__name__, name) in _READ:
                yield parent, child


def _warn_of_ties(module: nn.Module, chosen: list[tuple[str, PlainLayer]]) -> None:
    weights = {id(layer.weight): name for name, layer in chosen if not why_not(layer)}
    layers = {id(layer) for _, layer in chosen}
    shared = [
        f"{name!r} ({type(m).__name__}) that of {weights[id(p)]!r}"
        for name, m in module.named_modules()
        if id(m) not in layers
        for p in m._parameters.values()
        if id(p) in weights
    ]
    if shared:
        warnings.warn(
            f"svf.decompose: a weight is shared with a module that is not decomposed: {listing(shared, 3)}; there the "
            "pretrained weight stays, frozen, and does not follow S",
            stacklevel=4,
        )
