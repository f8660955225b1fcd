"""How to train: augmentation, optimizer, schedule, sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fss_svf.config.checks import check_size, require


@dataclass(frozen=True)
class Augment:
    """Training augmentation: one random warp, blur and flip an image. Units: degrees, probabilities, fractions.

    fit: how an image comes to the recipe's size, cut out of the scaled image or squashed, both sides to it. A squashed
    image is only flipped, as in PANet.
    """

    scale: tuple[float, float]
    rotate: float
    blur: float
    flip: float
    keep_foreground: float
    rotate_probability: float
    fit: Literal["crop", "squash"] = "crop"

    def __post_init__(self) -> None:
        require(0 < self.scale[0] <= self.scale[1], "scale", "two positive numbers, the smaller first", self.scale)
        if self.fit == "squash":
            for key, neutral in (("scale", (1, 1)), ("rotate", 0), ("blur", 0), ("keep_foreground", 0)):
                shown = list(neutral) if isinstance(neutral, tuple) else neutral
                require(
                    getattr(self, key) == neutral, key, f"{shown} with fit=squash (or fit=crop)", getattr(self, key)
                )
        for key in ("blur", "flip", "keep_foreground", "rotate_probability"):
            require(0 <= getattr(self, key) <= 1, key, "a fraction from 0 to 1", getattr(self, key))


@dataclass(frozen=True)
class Optimizer:
    """`lr` is the rate of the head, `backbone_lr` of whatever moves in the backbone; both as really used.

    weight_decay is the head's, and the backbone's where backbone_weight_decay is null.
    sgd has momentum (nesterov: Nesterov's), and weight decay in the gradient; adamw has beta1 = momentum, and decoupled
    weight decay.
    """

    name: Literal["sgd", "adamw"]
    lr: float
    backbone_lr: float
    momentum: float
    weight_decay: float
    # Checkpoints from before these keys have none.
    backbone_weight_decay: float | None = None
    nesterov: bool = False

    def __post_init__(self) -> None:
        for key in ("lr", "backbone_lr", "weight_decay"):
            require(getattr(self, key) >= 0, key, "a number >= 0", getattr(self, key))
        decay = self.backbone_weight_decay
        require(decay is None or decay >= 0, "backbone_weight_decay", "null or a number >= 0", decay)
        require(0 <= self.momentum < 1, "momentum", "a number from 0 to below 1", self.momentum)
        fits = not self.nesterov or (self.name == "sgd" and self.momentum > 0)
        require(fits, "nesterov", "false but with name=sgd and a momentum above 0", self.nesterov)


@dataclass(frozen=True)
class Schedule:
    """How the rates move from step to step: constant, poly ((1 - t)^power), cosine, t from 0 to 1, or steps.

    warmup: steps over which the rates first rise linearly.
    milestones, factor: of steps; from each of these steps on the rates are `factor` times what they were.
    """

    name: Literal["constant", "poly", "cosine", "steps"]
    power: float
    warmup: int
    milestones: tuple[int, ...] = ()
    factor: float = 0.1

    def __post_init__(self) -> None:
        require(self.warmup >= 0, "warmup", "a number of steps >= 0", self.warmup)
        require(self.factor > 0, "factor", "a number > 0", self.factor)
        rising = list(self.milestones) == sorted({m for m in self.milestones if m >= 1})
        require(rising, "milestones", "ascending steps >= 1", list(self.milestones))
        with_steps = (self.name == "steps") == bool(self.milestones)
        require(with_steps, "milestones", "steps with name=steps, and none otherwise", list(self.milestones))


@dataclass(frozen=True)
class Recipe:
    """How to train, on crops of `size` x `size` pixels. An epoch shows every image once; `max_steps` ends it earlier.

    batch_size  of a step, over all processes
    clip_norm   the largest norm of a step's gradient, over all that trains; a longer one is shortened to it
    """

    name: str
    size: int
    test_size: int | None
    batch_size: int
    epochs: int
    max_steps: int | None
    optimizer: Optimizer
    schedule: Schedule
    augment: Augment
    # Checkpoints from before this key have none.
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        require(self.clip_norm is None or self.clip_norm > 0, "clip_norm", "null or a number > 0", self.clip_norm)
        check_size(self.size)
        check_size(self.tested_at)
        require(self.batch_size >= 1, "batch_size", "a whole number >= 1", self.batch_size)
        require(self.epochs >= 1, "epochs", "a whole number >= 1", self.epochs)
        require(self.max_steps is None or self.max_steps >= 1, "max_steps", "null or >= 1", self.max_steps)

    @property
    def tested_at(self) -> int:
        """The input size of evaluations, in pixels."""
        return self.test_size or self.size
