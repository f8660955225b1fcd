"""Adapters: the trained singular values alone, tied to the weights they belong to by a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fss_svf.errors import WeightsError
from fss_svf.svf.decompose import layers


class AdapterError(WeightsError):
    """An adapter does not fit the model: other base weights, other layers, a damaged file."""


def base_hash(module: nn.Module) -> str:
    """16 hex digits over names and pretrained weights of the SVF layers, the same on every device."""
    digest = hashlib.sha256()
    for name, layer in layers(module):
        digest.update(name.encode())
        digest.update(layer.weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def adapter_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """S of every SVF layer by layer name, each (groups, r)."""
    found = {name: layer.S.detach().clone() for name, layer in layers(module)}
    if not found:
        raise AdapterError("the model has no SVF layer; call svf.decompose first")
    return found


def load_adapter_state_dict(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set S of every SVF layer. Raises AdapterError naming layers that are left over, missing or of another rank."""
    _check_fit(module, state)
    with torch.no_grad():
        for name, layer in layers(module):
            layer.S.copy_(state[name])
            if layer.merged:
                layer._merged = layer.effective_weight()


def _check_fit(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = dict(layers(module))
    problems = [f"{name} is not in the adapter" for name in own if name not in state]
    problems += [f"{name} is not an SVF layer of the model" for name in state if name not in own]
    problems += [
        f"{name} has S of {tuple(state[name].shape)}, the model {tuple(own[name].S.shape)}"
        for name in own
        if name in state and state[name].shape != own[name].S.shape
    ]
    if problems:
        raise AdapterError(
            f"adapter does not fit: {problems[0]} ({len(problems)} such problems); decompose as it was made"
        )


def save_adapter(module: nn.Module, path: Path | str) -> None:
    """Write the adapter as safetensors with the hash of its base weights. Appears whole or not at all."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    state = {name: value.cpu().contiguous() for name, value in adapter_state_dict(module).items()}
    save_file(state, partial, metadata={"format": "fss-svf adapter 1", "base_hash": base_hash(module)})
    partial.replace(path)


def load_adapter(module: nn.Module, path: Path | str) -> None:
    """Load an adapter into a model decomposed in the same way. Raises AdapterError; other base weights are refused."""
    try:
        with safe_open(path, framework="pt") as f:
            metadata = f.metadata() or {}
            state = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise AdapterError(f"{path}: no such adapter") from None
    except (SafetensorError, OSError) as error:  # OSError: a folder, no permission
        raise AdapterError(f"{path}: not a readable safetensors file ({error})") from None
    _check_fit(module, state)  # first, for the hash covers the layers' names and would blame the weights
    found, expected = base_hash(module), metadata.get("base_hash")
    if expected != found:
        raise AdapterError(
            f"{path}: made for base weights {expected}, the model has {found}; load the weights it was trained from"
        )
    load_adapter_state_dict(module, state)
