"""What an adapter is: the trained tensors of SVF layers by name, and the hash of the weights they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fss_svf.errors import WeightsError, listing
from fss_svf.svf.decompose import layers
from fss_svf.svf.factors import matrices_of
from fss_svf.svf.layers import SVFLayer


class AdapterError(WeightsError):
    """An adapter does not fit the model: other base weights, other layers, a damaged file."""


def base_hash(module: nn.Module) -> str:
    """16 hex digits over names and pretrained weights of the SVF layers, the same on every device."""
    return hash_of((name, layer.weight) for name, layer in layers(module))


def hash_of(weights: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, weight in weights:
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def adapter_state_dict(module: nn.Module, factors: bool = False) -> dict[str, Tensor]:
    """A copy of what trains in every SVF layer, by its name in module.state_dict() and by every name of a tied layer.

    factors   S0, U and Vh too, of every layer. Of a layer whose U or V trains they always are: a new SVD may turn the
              factor that did not train the other way round.
    """
    found = {
        name: getattr(layer, own).detach().clone()
        for prefix, layer in layers(module)
        for own, name in _names(prefix, layer).items()
        if layer.form.parameters.get(own) or factors or layer.form.train != ("S",)
    }
    if not found:
        raise AdapterError("the model has no SVF layer; call svf.decompose first")
    return found


def load_adapter_state_dict(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set what adapter_state_dict gave, with factors or without.

    Raises AdapterError naming tensors that are left over, missing or of another shape; the model is then as it was.
    """
    check_names(module, state)
    with torch.no_grad():
        for prefix, layer in layers(module):
            for own, name in _names(prefix, layer).items():
                if name in state:
                    getattr(layer, own).copy_(state[name])
            if layer.merged:
                layer.merge()


def check_names(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise AdapterError unless `state` has what trains in the SVF layers, in its shapes, and nothing but factors."""
    needed = adapter_state_dict(module)
    known = {
        name: getattr(layer, own) for prefix, layer in layers(module) for own, name in _names(prefix, layer).items()
    }
    problems = [f"{name} is not in the adapter" for name in needed if name not in state]
    problems += [f"{name} is not of an SVF layer of the model" for name in state if name not in known]
    problems += [
        f"{name} is {tuple(state[name].shape)}, in the model {tuple(known[name].shape)}"
        for name in known
        if name in state and state[name].shape != known[name].shape
    ]
    if problems:
        raise AdapterError(f"adapter does not fit: {listing(problems, 2)}; decompose as it was made")


def check_factors(module: nn.Module) -> None:
    """Raise AdapterError where a weight was written to since it was decomposed, so that its factors are another's.

    load_state_dict computes them anew; `layer.weight.data.copy_` does not. U and Vh that train cannot be checked.
    """
    with torch.no_grad():
        for name, layer in layers(module):
            if layer.form.train != ("S",) or layer.weight.is_meta:
                continue
            if not torch.allclose(layer.U.square().sum(1), layer.S0.new_ones(()), atol=1e-2):
                continue  # factors that no SVD made: memory that a checkpoint is to fill
            matrices = matrices_of(layer.weight, layer.S0.shape[0])
            found = ((layer.U.mT @ matrices) * layer.Vh).sum(2)
            # Half precision may have rounded the weight after it was decomposed.
            allowed = 1e-3 if layer.weight.dtype.itemsize >= 4 else 2e-2
            if float((found - layer.S0).norm()) > allowed * float(matrices.norm()):
                raise AdapterError(
                    f"{name or 'the layer'}: its weight is not the one that was decomposed; load weights before "
                    "svf.decompose, or with load_state_dict(..., strict=False)"
                )


def _names(prefix: str, layer: SVFLayer) -> dict[str, str]:
    """The adapter's tensors of a layer: attribute, and name in the model's state dict."""
    return {own: f"{prefix}.{own}" if prefix else own for own in (*layer.form.parameters, "S0")}


def fingerprint(layer: SVFLayer) -> float:
    """A number that tells whether S, U and Vh make the same weight as they did elsewhere.

    aᵀ U diag(S) Vh b with fixed a and b, in float64 (S - S0 for S where the weight is W + U diag(S - S0) Vh).
    """
    with torch.no_grad():
        return layer.product(layer.singular_values() - layer.S0 if layer.exact else layer.singular_values())
