"""Parameter groups and schedules. The rates of the config are the rates the optimizer uses."""

from __future__ import annotations

import math

import torch
from torch import nn

from fss_svf.config import Optimizer, Schedule
from fss_svf.errors import ConfigError, TrainingError, listing


def make_optimizer(model: nn.Module, backbone: nn.Module, options: Optimizer) -> torch.optim.Optimizer:
    """SGD or AdamW with a group for the head and one for whatever is trainable in the backbone. Raises ConfigError."""
    inside = {id(p) for p in backbone.parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"name": "head", "lr": options.lr, "params": [p for p in trainable if id(p) not in inside]},
        {"name": "backbone", "lr": options.backbone_lr, "params": [p for p in trainable if id(p) in inside]},
    ]
    groups = [{**group, "base_lr": group["lr"]} for group in groups if group["params"]]
    if not groups:
        raise ConfigError(
            "nothing to train: this method has no parameters of its own and the tuning froze the backbone"
        )
    if options.name == "adamw":
        return torch.optim.AdamW(groups, betas=(options.momentum, 0.999), weight_decay=options.weight_decay)
    return torch.optim.SGD(groups, momentum=options.momentum, weight_decay=options.weight_decay)


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
