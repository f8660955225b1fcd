"""Which layers of a model svf.decompose takes, and a warning that names what matches and cannot be taken."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from fss_svf.attention import PARTS, attention_layers, rows_of
from fss_svf.errors import listing
from fss_svf.svf.layers import CONVERTED, PlainLayer, SVFLayer
from fss_svf.svf.qkv import SVFQKV

# PyTorch's own modules with weights that are matrices, beside Conv2d and Linear.
_OTHERS = (_ConvNd, nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
# Children of torchvision's Swin attention, which reads their weights and never calls them: S would have no effect.
_READ = {
    (attention, child)
    for attention in ("ShiftedWindowAttention", "ShiftedWindowAttentionV2")
    for child in ("qkv", "proj")
}


# A name for anything in the place of a part's, for patterns that do not name the part.
_ANYTHING = "_"


@dataclass(frozen=True)
class Target:
    """A matrix to decompose: the weight of a layer, or the rows of one part of a qkv layer (qkv.py).

    name     the layer's, or layer.part
    by_name  whether a pattern must name it, as the queries and keys of an attention
    """

    name: str
    layer: PlainLayer
    part: str = ""
    by_name: bool = False

    @property
    def parameter(self) -> nn.Parameter:
        weight = self.layer._parameters["weight"]
        assert weight is not None
        return weight

    @property
    def weight(self) -> Tensor:
        return rows_of(self.parameter, self.part) if self.part else self.parameter

    @property
    def groups(self) -> int:
        return getattr(self.layer, "groups", 1)

    @property
    def tie(self) -> tuple[int, int, str]:
        """Targets of the same tie share their factors."""
        return id(self.layer._parameters.get("weight")), self.groups, self.part

    def matches(self, pattern: str) -> bool:
        """Whether the pattern is found in the name, or, of a part, in that of its layer."""
        return bool(
            re.search(pattern, self.name) or (self.part and re.search(pattern, self.name[: -1 - len(self.part)]))
        )

    def included_by(self, pattern: str) -> bool:
        """The same; but queries and keys are included only by a pattern that names them.

        Training their singular values ruins the features of DINOv2: 6.6 in place of 83.5 % (k nearest neighbours, SINDER,
        ECCV 2024, arXiv 2407.16826).
        """
        if not self.by_name:
            return self.matches(pattern)
        elsewhere = f"{self.name.rpartition('.')[0]}.{_ANYTHING}"
        return bool(re.search(pattern, self.name)) and not re.search(pattern, elsewhere)


def plain_layers(module: nn.Module) -> list[Target]:
    """What decompose could convert."""
    read = {id(child) for _, child in _read_past_forward(module)}
    roles = attention_layers(module)
    found: list[Target] = []
    # named_modules visits a module used twice once.
    for name, m in module.named_modules():
        role = roles.get(id(m), "")
        if type(m) in CONVERTED and id(m) not in read:
            parts: tuple[str, ...] = PARTS if role == "qkv" else ()
        elif isinstance(m, SVFQKV):
            parts = tuple(part for part in PARTS if part not in m._modules)
            if not parts:
                continue
        else:
            continue
        assert isinstance(m, PlainLayer)
        if parts:
            found += [Target(f"{name}.{part}", m, part, by_name=part != "v") for part in parts]
        else:
            found.append(Target(name, m, by_name=role in ("q", "k")))
    return found


def choose(module: nn.Module, include: list[str], exclude: list[str]) -> list[Target]:
    """What the patterns choose. Raises ValueError for a pattern without a match, and for no layer.

    Among them may be Conv2d and Linear that cannot be converted as they are (why_not). What matches and is another kind
    of layer is named in a warning, and so is a module that shares a chosen weight and is not chosen.
    """
    targets: dict[int, list[Target]] = {}
    for target in plain_layers(module):
        targets.setdefault(id(target.layer), []).append(target)
    found: list[Target] = []
    for name, m in module.named_modules():
        found += targets.get(id(m)) or ([Target(name, m)] if isinstance(m, PlainLayer) and why_not(m) else [])
    others = _left_out(module, {id(target.layer) for target in found})
    for pattern in include:
        if not any(target.included_by(pattern) for target in found):
            raise _no_match(pattern, found, others)
    for pattern in exclude:
        if not any(t.matches(pattern) for t in found) and not any(re.search(pattern, name) for name, _ in others):
            raise _no_match(pattern, found, others)

    def chosen(target: Target) -> bool:
        included = any(target.included_by(p) for p in include) if include else not target.by_name
        return included and not any(target.matches(p) for p in exclude)

    def matches(name: str) -> bool:
        included = not include or any(re.search(p, name) for p in include)
        return included and not any(re.search(p, name) for p in exclude)

    result = [target for target in found if chosen(target)]
    if not result:
        raise ValueError("svf.decompose: there is no Conv2d or Linear layer left to decompose")
    left = [f"{name} ({kind})" for name, kind in others if matches(name)]
    if left:
        warnings.warn(
            f"svf.decompose: {listing(left)} match and are left as they are, since only Conv2d and Linear themselves are "
            "decomposed; name them in `exclude` to leave them out without this warning",
            stacklevel=3,
        )
    _warn_of_ties(module, result)
    return result


def _no_match(pattern: str, found: list[Target], others: list[tuple[str, str]]) -> ValueError:
    names = ", ".join(repr(target.name) for target in found[:3])
    only = [f"{name} ({kind})" for name, kind in others if re.search(pattern, name)]
    return ValueError(
        f"svf.decompose: pattern {pattern!r} matches none of the {len(found)} Conv2d and Linear layers "
        f"({names}...)" + (f", but {listing(only, 3)}, which cannot be decomposed" if only else "")
    )


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
        if id(m) in found or isinstance(m, (SVFLayer, SVFQKV)):
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


def _warn_of_ties(module: nn.Module, chosen: list[Target]) -> None:
    weights = {id(target.parameter): target.name for target in chosen if not why_not(target.layer)}
    layers = {id(target.layer) for target in chosen}
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
