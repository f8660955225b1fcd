"""Adapters as safetensors files, loaded into a decomposed model or into a plain one.

Tensors go by their names in the model's state dict. The metadata: format, hash of the base weights, dtype, and a JSON
list of layers, each [name, rank, what trains, parametrisation, fingerprint].
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fss_svf.errors import listing
from fss_svf.files import atomic_write
from fss_svf.svf.adapter import (
    AdapterError,
    adapter_state_dict,
    base_hash,
    check_factors,
    check_names,
    fingerprint,
    hash_of,
    load_adapter_state_dict,
)
from fss_svf.svf.batchnorm import batchnorms, changed
from fss_svf.svf.choosing import plain_layers
from fss_svf.svf.decompose import convert, layers
from fss_svf.svf.layers import Form, SVFLayer
from fss_svf.svf.qkv import SVFQKV

FORMAT = "fss-svf adapter 2"
# How far the weights rebuilt here may be from those that were saved, as a share of a layer's weight: half precision
# rounds the factors.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}
TOLERANCE_OF_HALF = 5e-2


@dataclass(frozen=True)
class Line:
    """What an adapter says of a layer."""

    name: str
    rank: int
    form: Form
    fingerprint: float


@dataclass(frozen=True)
class Adapter:
    """A file that was read."""

    base_hash: str
    dtype: str
    lines: tuple[Line, ...]
    state: dict[str, Tensor]  # of SVF layers
    others: dict[str, Tensor]  # BatchNorm, and what `also` named


def save_adapter(
    module: nn.Module,
    path: Path | str,
    batchnorm: Literal["auto"] | bool = "auto",
    also: Iterable[str] = (),
    factors: bool = False,
) -> None:
    """Write the adapter of a decomposed model as safetensors. Appears whole or not at all.

    batchnorm  statistics, weights and biases of BatchNorm: "auto" those that changed since svf.decompose (all, where
               that was on the meta device), or all, or none
    also       regular expressions of further tensors of the model's state dict, such as a new head: r"^fc\\."
    factors    S0, U and Vh too (as large as the weights), for the same weights where another SVD would differ
    Raises AdapterError: no SVF layer, a pattern that matches nothing, or a weight that was changed since svf.decompose.
    """
    check_factors(module)
    state = adapter_state_dict(module, factors) | _others(module, batchnorm, [also] if isinstance(also, str) else also)
    lines = [
        [name, layer.rank, "".join(layer.form.train), layer.form.parametrisation, fingerprint(layer)]
        for name, layer in layers(module)
    ]
    metadata = {
        "format": FORMAT,
        "base_hash": base_hash(module),
        "dtype": _dtypes(layer.weight for _, layer in layers(module)),
        "layers": json.dumps(lines, separators=(",", ":")),
    }
    with atomic_write(Path(path)) as unfinished:
        save_file({name: value.cpu().contiguous() for name, value in state.items()}, unfinished, metadata=metadata)


def _others(module: nn.Module, batchnorm: Literal["auto"] | bool, also: Iterable[str]) -> dict[str, Tensor]:
    everything = module.state_dict()
    names = [
        f"{prefix}.{own}" if prefix else own
        for prefix, norm in batchnorms(module)
        if batchnorm is True or (batchnorm == "auto" and changed(norm))
        for own in norm.state_dict()
    ]
    of_layers = {
        f"{prefix}.{own}" if prefix else own
        for prefix, layer in layers(module)
        for own in (*layer.form.parameters, "S0", "weight")
    }
    of_layers |= {f"{prefix}.weight" for prefix, layer in module.named_modules() if isinstance(layer, SVFQKV)}
    for pattern in also:
        found = [name for name in everything if name not in of_layers and re.search(pattern, name)]
        if not found:
            raise AdapterError(f"save_adapter: also: {pattern!r} matches no tensor outside the factors")
        names += found
    return {name: everything[name].detach().clone() for name in names}


def load_adapter(module: nn.Module, path: Path | str, cache: Path | str | None = None, progress: bool = False) -> None:
    """Load an adapter into a model decomposed as it was made, or into a plain one, which is decomposed so.

    cache, progress  of svf.decompose, for a plain model
    Raises AdapterError for a file that is none, other base weights, other layers, ranks or parametrisations, tensors
    without a place, and factors that rebuild other weights here than where it was saved. The model is then as it was.
    """
    try:
        adapter = _read(path)
        if any(layers(module)):
            _load_into_decomposed(module, adapter)
        else:
            _load_into_plain(module, adapter, None if cache is None else Path(cache).expanduser(), progress)
    except AdapterError as error:
        raise AdapterError(f"{path}: {error}") from None
    everything = module.state_dict()
    with torch.no_grad():
        for name, value in adapter.others.items():
            everything[name].copy_(value)


def _load_into_decomposed(module: nn.Module, adapter: Adapter) -> None:
    own = dict(layers(module))
    _check_layers(own, adapter)
    _check_hash({name: layer.weight for name, layer in own.items()}, adapter)
    _check_others(module, adapter)
    check_names(module, adapter.state)
    before = {name: value.clone() for name, value in module.state_dict().items() if name in adapter.state}
    load_adapter_state_dict(module, adapter.state)
    try:
        _check_fingerprints(own, adapter)
    except AdapterError:
        load_adapter_state_dict(module, before)
        raise


def _load_into_plain(module: nn.Module, adapter: Adapter, cache: Path | None, progress: bool) -> None:
    own = {target.name: target for target in plain_layers(module)}
    _refuse([f"{line.name} is no Conv2d or Linear of the model" for line in adapter.lines if line.name not in own])
    targets = {line.name: own[line.name] for line in adapter.lines}
    _check_hash({name: target.weight for name, target in targets.items()}, adapter)
    _check_others(module, adapter)
    trained = {name: target.parameter.requires_grad for name, target in targets.items()}
    for form in dict.fromkeys(line.form for line in adapter.lines):
        lines = [line for line in adapter.lines if line.form == form]
        chosen = [targets[line.name] for line in lines]
        convert(module, chosen, {line.name: line.rank for line in lines}, 1, form, cache, progress)
    converted = dict(layers(module))
    try:
        load_adapter_state_dict(module, adapter.state)
        _check_fingerprints(converted, adapter)
    except AdapterError:
        for name, layer in converted.items():
            layer.become_plain()
            targets[name].parameter.requires_grad_(trained[name])
        raise


def _read(path: Path | str) -> Adapter:
    try:
        with safe_open(path, framework="pt") as f:
            metadata = f.metadata() or {}
            state = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise AdapterError("no such adapter") from None
    except (SafetensorError, OSError) as error:  # OSError: a folder, no permission
        raise AdapterError(f"not a readable safetensors file ({error})") from None
    found = metadata.get("format")
    if found != FORMAT:
        older = str(found).startswith("fss-svf adapter")
        raise AdapterError(
            f"is a {found!r}, this version reads {FORMAT!r}; save it again from the trained model"
            if older
            else "a safetensors file, but no adapter of svf.save_adapter"
        )
    try:
        lines = tuple(
            Line(str(name), int(rank), Form(tuple(train), parametrisation), float(number))
            for name, rank, train, parametrisation, number in json.loads(metadata["layers"])
        )
        names = {f"{line.name}.{own}" if line.name else own for line in lines for own in (*line.form.parameters, "S0")}
        ours, others = ({k: v for k, v in state.items() if (k in names) == own} for own in (True, False))
        return Adapter(metadata["base_hash"], metadata["dtype"], lines, ours, others)
    except (KeyError, ValueError, TypeError) as error:
        raise AdapterError(f"its metadata is damaged ({error})") from None


def _check_layers(own: Mapping[str, SVFLayer], adapter: Adapter) -> None:
    theirs = {line.name: line for line in adapter.lines}
    problems = [f"{name} is not in the adapter" for name in own if name not in theirs]
    problems += [f"{name} is not an SVF layer of the model" for name in theirs if name not in own]
    for name, line in theirs.items():
        layer = own.get(name)
        if layer is not None and line.rank != layer.rank:
            problems.append(f"{name} has rank {line.rank}, in the model {layer.rank}")
        elif layer is not None and line.form != layer.form:
            problems.append(f"{name} trains {_words(line.form)}, in the model {_words(layer.form)}")
    _refuse(problems)


def _refuse(problems: list[str]) -> None:
    if problems:
        raise AdapterError(
            f"does not fit: {listing(problems, 2)}; decompose as it was made, or give the plain model, which is "
            "decomposed so by itself"
        )


def _words(form: Form) -> str:
    return f"{'+'.join(form.train)} ({form.parametrisation})"


def _check_hash(weights: Mapping[str, Tensor], adapter: Adapter) -> None:
    found = hash_of(weights.items())
    if found != adapter.base_hash:
        raise AdapterError(
            f"made for base weights {adapter.base_hash} ({adapter.dtype}), the model has {found} "
            f"({_dtypes(weights.values())}); load the weights it was trained from, in the same dtype"
        )


def _check_others(module: nn.Module, adapter: Adapter) -> None:
    own = module.state_dict()
    _refuse_others([name for name in adapter.others if name not in own], "is not in the model")
    _refuse_others([n for n, v in adapter.others.items() if v.shape != own[n].shape], "has another shape in the model")


def _refuse_others(names: list[str], why: str) -> None:
    if names:
        raise AdapterError(f"{listing(names, 3)} {why}; give it the same BatchNorm and head")


def _check_fingerprints(own: Mapping[str, SVFLayer], adapter: Adapter) -> None:
    for line in adapter.lines:
        layer = own[line.name]
        allowed = TOLERANCE.get(layer.weight.dtype, TOLERANCE_OF_HALF) * float(layer.weight.float().norm())
        if abs(fingerprint(layer) - line.fingerprint) > allowed:
            raise AdapterError(
                f"{line.name}: the factors computed here rebuild another weight than the one that was saved (singular "
                "values that are equal have no factors of their own); save the adapter with factors=True"
            )


def _dtypes(weights: Iterable[Tensor]) -> str:
    return ", ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in weights}))
