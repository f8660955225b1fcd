"""Several classes at once by a method of one: each class is predicted alone, and the best of them has the pixel."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fss_svf.config import WayRule
from fss_svf.errors import ConfigError
from fss_svf.methods.method import FewShotMethod

ChosenRule = Literal["argmax", "joint"]


def choose_rule(model: FewShotMethod, way: int | None, rule: WayRule) -> ChosenRule | None:
    """How `way` classes become one mask: by join_ways or by the method itself. None for one class. way=None: all classes.

    Raises ConfigError for a rule without classes to join, and for joint where the method predicts one class at a time.
    """
    if way == 1:
        if rule != "auto":
            raise ConfigError(
                f"way_rule={rule}: way=1 has no classes to join; leave way_rule out, or say way=2 or more"
            )
        return None
    if rule == "joint" and not model.many_ways:
        raise ConfigError(
            f"way_rule=joint: {type(model).__name__} segments one class at a time; leave way_rule out, or say "
            "way_rule=argmax"
        )
    return "joint" if model.many_ways and rule != "argmax" else "argmax"


def join_ways(foreground: Tensor, threshold: float = 0.5) -> Tensor:
    """How sure N one-way predictions are of their class, (B, N, H, W), to labels (B, H, W), uint8 in 0..N.

    A pixel is of the class with the highest value where that is above `threshold`, else background, 0. Of equal values
    the first class has it. N is at most 254: 255 is ignored everywhere.

    foreground: probabilities in [0, 1], or with threshold=0 the log odds of foreground_odds: the same labels, also where
    probabilities are rounded to 1 and no longer differ. Nothing waits for the device.
    """
    best, way = foreground.max(1)  # of equal values PyTorch gives the first
    return torch.where(best > threshold, way + 1, 0).to(torch.uint8)


def foreground_odds(logits: Tensor) -> Tensor:
    """(M, 2, H, W) logits of background and foreground to the log odds of the foreground, (M, H, W).

    They are above 0 exactly where argmax(1) says foreground.
    """
    return logits[:, 1] - logits[:, 0]
