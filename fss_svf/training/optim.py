"""Parameter groups and schedules. The rates of the config are the rates the optimizer uses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fss_svf.config import Optimizer, Schedule
from fss_svf.errors import ConfigError, TrainingError, listing


def make_optimizer(model: nn.Module, backbone: nn.Module, options: Optimizer) -> torch.optim.Optimizer:
    """SGD or AdamW with a group for the head and one for whatever is trainable in the backbone. Raises ConfigError.

    One fused kernel a group where everything that trains is on a GPU: place the model first.
    """
    inside = {id(p) for p in backbone.parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    head = [p for p in trainable if id(p) not in inside]
    moving = [p for p in trainable if id(p) in inside]
    decay, theirs = options.weight_decay, options.backbone_weight_decay
    groups = [
        {"name": "head", "params": head, "lr": options.lr, "weight_decay": decay},
        {
            "name": "backbone",
            "params": moving,
            "lr": options.backbone_lr,
            "weight_decay": decay if theirs is None else theirs,
        },
    ]
    groups = [{**group, "base_lr": group["lr"]} for group in groups if group["params"]]
    if not groups:
        raise ConfigError(
            "nothing to train: this method has no parameters of its own and the tuning froze the backbone; measure it as "
            "it is: fss-svf evaluate method=NAME backbone=NAME dataset=NAME fold=N size=N, as in this command"
        )
    # None is PyTorch's own choice among what is not fused.
    fused = True if all(p.is_cuda for p in trainable) else None
    if options.name == "adamw":
        return torch.optim.AdamW(groups, betas=(options.momentum, 0.999), fused=fused)
    optimizer = torch.optim.SGD(groups, momentum=options.momentum, nesterov=options.nesterov, fused=fused)
    if fused and options.momentum:
        # PyTorch allocates them in the first step, and leaves them undefined where that step is left out.
        for parameter in trainable:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """optimizer.load_state_dict(state), but how `optimizer` runs (fused, foreach) stays: on this device, not on that of
    whoever saved the state.
    """
    how = ("fused", "foreach")
    groups = [
        {**saved, **{key: own[key] for key in how}} for saved, own in zip(state["param_groups"], optimizer.param_groups)
    ]
    # A number of groups that does not fit is left for PyTorch to refuse.
    groups += state["param_groups"][len(groups) :]
    optimizer.load_state_dict({**state, "param_groups": groups})


def describe(optimizer: torch.optim.Optimizer) -> str:
    """Every group in one line: 'head: lr 0.015, weight decay 0.0001, 2,113,858 values; backbone: ...'."""
    return "; ".join(
        f"{group['name']}: lr {group['base_lr']:g}, weight decay {group['weight_decay']:g}, "
        f"{sum(p.numel() for p in group['params']):,} values"
        for group in optimizer.param_groups
    )


def set_rates(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int, total: int) -> None:
    """Set every group's rate for `step` (0-based) of `total`."""
    factor = rate_factor(schedule, step, total)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def rate_factor(schedule: Schedule, step: int, total: int) -> float:
    """At step t of T: constant 1, poly (1 - t/T)^power, cosine (1 + cos(pi t/T)) / 2, steps factor^(milestones <= t).

    Times (t + 1) / warmup below 1.
    """
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup * _decay(schedule, step, total)
    return _decay(schedule, step, total)


def _decay(schedule: Schedule, step: int, total: int) -> float:
    if schedule.name == "poly":
        return float((1 - step / total) ** schedule.power)
    if schedule.name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / total))
    if schedule.name == "steps":
        return float(schedule.factor ** sum(m <= step for m in schedule.milestones))
    return 1.0


def require_gradients(model: nn.Module) -> None:
    """Raise TrainingError naming the trainable tensors that the first backward did not reach."""
    silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    if silent:
        raise TrainingError(
            f"{len(silent)} trainable tensors received no gradient: {listing(silent)}; "
            "they would never train: freeze them, or let the loss reach them"
        )
