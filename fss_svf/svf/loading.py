"""load_state_dict of an SVF layer: its own state dict exactly, and a plain layer's weight with factors computed anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fss_svf.precision import in_float32
from fss_svf.svf.factors import determined, matrices_of, svd, widened

if TYPE_CHECKING:
    from fss_svf.svf.layers import SVFLayer

_START = "_svf_start"  # an attribute of U, which layers of one tie share: its S0, which each has as a buffer of its own


@dataclass(frozen=True)
class Plan:
    """What is to happen to a layer once PyTorch has loaded its tensors.

    given    whether the state dict holds a weight for it
    factors  whether it holds any of U, S0 and Vh
    anew     whether the factors are computed from the new weight
    keep_s   whether the parameter that holds S stays as it was loaded
    """

    given: bool
    factors: bool
    anew: bool
    keep_s: bool


def load_layer(
    layer: SVFLayer,
    load: Callable[..., None],
    state: dict[str, Any],
    prefix: str,
    metadata: dict[str, Any],
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """nn.Module._load_from_state_dict of a layer, which `load` does; errors are its, or appended to `errors`."""
    plan = plan_load(layer, state.get(f"{prefix}weight"), state, prefix, metadata, errors)
    if plan is not None:
        load_as_planned(layer, plan, load, state, prefix, metadata, strict, missing, unexpected, errors)


def plan_load(
    layer: SVFLayer, given: Any, state: dict[str, Any], prefix: str, metadata: dict[str, Any], errors: list[str]
) -> Plan | None:
    """How a layer takes a state dict that has `given` for its weight; None, with a line in `errors`, where it cannot.

    With U, S0 and Vh in the state dict they are loaded, and no SVD is computed. A weight that comes without them is a
    plain model's. Where it is another than the layer's, the layer starts anew from it, at its rank, with S from the state
    dict where that has it; where it is the same, the factors stay. PyTorch still counts the factors as missing, so that
    strict=True raises. A weight with some of the factors, or one that has none, is an error. Another weight beside the
    factors that the layer has, as where a plain state dict was put into the layer's own, starts anew too.
    """
    holder, *_ = layer.form.parameters
    has_s = f"{prefix}{holder}" in state
    factors = [name for name in ("U", "S0", "Vh") if f"{prefix}{name}" in state]
    if not isinstance(given, Tensor):
        return Plan(given is not None, bool(factors), anew=False, keep_s=has_s)
    if factors and len(factors) < 3:
        found = " and ".join(factors)
        errors.append(f"{prefix}weight comes with {found} of its factors; give U, S0 and Vh, or none of them")
        return None
    if not factors and given.shape == layer.weight.shape and not (given.is_meta or torch.isfinite(given).all()):
        errors.append(f"{prefix}weight holds NaN or infinity, so its factors cannot be computed")
        return None
    if len(factors) == 3 and _is_mixed(layer, given, state, prefix):
        return Plan(True, True, anew=True, keep_s=False)
    return Plan(True, bool(factors), anew=not factors and _replaces(layer.weight, given, metadata), keep_s=has_s)


def load_as_planned(
    layer: SVFLayer, plan: Plan, load: Callable[..., None], state: dict[str, Any], prefix: str, *arguments: Any
) -> None:
    """Load the layer's own tensors, and then do what the plan says."""
    # Also where a state dict in half precision is assigned, what trains is not of half precision.
    holder, *_ = layer.form.parameters
    names = [f"{prefix}{name}" for name in (*layer.form.parameters, "S0")]
    wide = {name: state[name].to(widened(state[name].dtype)) for name in names if isinstance(state.get(name), Tensor)}
    load({**state, **wide}, prefix, *arguments)
    with torch.no_grad():
        if plan.anew:
            start_anew(layer, keep_s=plan.keep_s)
        elif plan.factors:
            layer.U.__dict__.pop(_START, None)
            if plan.given and not plan.keep_s:
                _set(layer, holder, layer.form.start(layer.S0))
        elif plan.given and hasattr(layer.U, _START):
            # A layer of the same tie was loaded before this one, and has changed the weight and U, Vh and S already.
            layer.S0 = getattr(layer.U, _START).to(layer.S0)
        if layer.merged:
            layer.merge()


def start_anew(layer: SVFLayer, keep_s: bool = False) -> None:
    """Give the layer the factors of its weight, at its rank, with S at the start, or as it is where keep_s."""
    with torch.no_grad(), in_float32(layer.weight.device):
        u, s, vh = svd(matrices_of(layer.weight, layer.S0.shape[0]))
        layer.determined = determined(s)
        u, s, vh = u[..., : layer.rank], s[..., : layer.rank], vh[:, : layer.rank]
        layer.S0 = s.clone()
        for name, value in zip(layer.form.parameters, (layer.form.start(s), u, vh)):
            if not (keep_s and name not in ("U", "Vh")):
                _set(layer, name, value)
        setattr(layer.U, _START, layer.S0)


def _set(layer: SVFLayer, name: str, value: Tensor) -> None:
    """Give a parameter this value: in place, as optimizers and ties need it, unless it is elsewhere or of another dtype."""
    own: nn.Parameter = getattr(layer, name)
    if own.device == value.device and own.dtype == value.dtype:
        own.copy_(value)
    else:
        setattr(layer, name, nn.Parameter(value.clone(), requires_grad=own.requires_grad))


def _is_mixed(layer: SVFLayer, given: Tensor, state: dict[str, Any], prefix: str) -> bool:
    """Whether the state dict is this layer's own, into which another weight was put: state = m.state_dict() | plain."""
    own = {name: getattr(layer, name) for name in ("U", "S0", "Vh")}
    if layer.weight.is_meta or given.is_meta or given.shape != layer.weight.shape:
        return False
    weight, other = (value.detach().to("cpu", widened(layer.weight.dtype)) for value in (layer.weight, given))
    # Rounding to half precision is not another weight.
    if not bool(torch.isfinite(other).all()) or float((weight - other).norm()) <= 2e-2 * float(weight.norm()):
        return False
    theirs = {name: state[f"{prefix}{name}"] for name in own}
    return all(
        own[n].shape == v.shape and torch.equal(own[n], v.to(own[n].device, own[n].dtype)) for n, v in theirs.items()
    )


def _replaces(own: Tensor, given: Tensor, metadata: dict[str, Any]) -> bool:
    """Whether loading `given` makes another weight of `own`. What does not fit is not loaded, and PyTorch says so."""
    assigns = bool(metadata.get("assign_to_params_buffers", False))
    if given.shape != own.shape or given.is_meta or (own.is_meta and not assigns):
        return False
    if own.is_meta or (assigns and given.dtype != own.dtype):
        return True
    return not torch.equal(own, given.to(own.device, own.dtype))
