"""A method on a tuned backbone: built anew, or restored from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fss_svf import distributed, svf
from fss_svf.allocator import keep_freed_memory
from fss_svf.backbones.backbone import Backbone
from fss_svf.backbones.weights import LoadReport
from fss_svf.errors import ConfigError, WeightsError, listing
from fss_svf.methods.method import FewShotMethod
from fss_svf.registry import BACKBONES, METHODS, TUNINGS, Choice


def build_backbone(backbone: Choice) -> tuple[Backbone, LoadReport]:
    """The chosen backbone with its weights, everything still trainable."""
    built: tuple[Backbone, LoadReport] = BACKBONES.build(backbone)
    return built


def build_model(method: Choice, backbone: Choice, tuning: Choice) -> tuple[FewShotMethod, LoadReport]:
    """The chosen method on the chosen backbone, of which only what the tuning says requires grad."""
    net, report = build_backbone(backbone)
    TUNINGS.build(tuning, net)
    model: FewShotMethod = METHODS.build(method, net)
    return model, report


def restore_model(
    method: Choice, backbone: Choice, tuning: Choice, state: Mapping[str, Any], what: str
) -> FewShotMethod:
    """The model of a checkpoint. Raises WeightsError naming the tensors that do not fit; `what` is the file."""
    # On the meta device nothing is initialised or decomposed only to be overwritten.
    with torch.device("meta"):
        model, _ = build_model(without_weights(method), without_weights(backbone), tuning)
        model.fit_state(state)
        svf.fit_ranks(model, state)
    load_state(model, state, what, assign=True)
    return model


def without_weights(choice: Choice) -> Choice:
    """The same backbone, method or tuning, whose values a checkpoint will bring (a cache of factors would not have them)."""
    none = {key: None for key in ("weights", "base_learner", "cache") if hasattr(choice.options, key)}
    return replace(choice, options=replace(choice.options, **none))


def load_state(model: nn.Module, state: Mapping[str, Any], what: str, assign: bool = False) -> None:
    """load_state_dict, strict, with one line that names what does not fit. Raises WeightsError."""
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is left over" for name in state if name not in own]
    problems += [
        f"{name} has the shape {tuple(state[name].shape)}, the model {tuple(own[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    if problems:
        raise WeightsError(f"{what}: does not fit the model: {listing(problems, 3)}")
    model.load_state_dict(state, assign=assign)


def trainable_values(module: nn.Module) -> int:
    """How many numbers train."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def refuse_leak(trained_on: Mapping[str, Any] | None, novel: Iterable[str], what: str) -> None:
    """Raise WeightsError when the classes a checkpoint was trained on include classes that are to be novel now."""
    seen = sorted(set((trained_on or {}).get("classes", ())) & set(novel))
    if trained_on and seen:
        raise WeightsError(
            f"{what}: trained on fold {trained_on['fold']} of {trained_on['dataset']}, so it has seen "
            f"{listing(seen)}, novel here; use a checkpoint of this fold, or its fold={trained_on['fold']}"
        )


def place(model: nn.Module, device: torch.device) -> None:
    """Move to the device in channels-last, in which a dilated ResNet evaluates faster; a CPU's memory is kept for reuse."""
    if device.type == "cpu":
        keep_freed_memory()
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def choose_device(name: str) -> torch.device:
    """auto (cuda where there is one, else cpu) or a torch device name; cuda is one for each process of this machine.

    Raises ConfigError.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ConfigError(f"device={name}: this PyTorch sees no CUDA device; set device=cpu or device=auto")
    devices, local = torch.cuda.device_count(), distributed.local_rank()
    if device.index is None and distributed.world() > 1:
        if local >= devices:
            raise ConfigError(
                f"device={name}: {devices} CUDA devices are too few for the processes of this machine, each takes its own; "
                f"start --nproc-per-node {devices}, or let all share one with device=cuda:0"
            )
        return torch.device("cuda", local)
    if (device.index or 0) >= devices:
        raise ConfigError(f"device={name}: there are {devices} CUDA devices, numbered from 0")
    return device
