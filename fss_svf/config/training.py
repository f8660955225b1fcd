"""The configs of the verbs that make a training: pretrain, train, import-official."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fss_svf.config.checks import FoldNumber, check_fold, check_seed, check_workers, require
from fss_svf.config.mapping import group, to_mapping
from fss_svf.config.protocol import Protocol
from fss_svf.config.recipe import Augment, Recipe
from fss_svf.registry import BACKBONES, DATASETS, METHODS, TUNINGS, Choice

Precision = Literal["float32", "tf32", "bf16", "fp16"]
FeaturesDtype = Literal["bfloat16"]
LoggerName = Literal["tensorboard", "wandb", "mlflow", "none"]
# Keys that say how a run is done, not what comes out of it: they may change when it goes on.
MACHINE = (
    "plugins",
    "device",
    "workers",
    "cache_gb",
    "channels_last",
    "compile",
    "recompute",
    "accumulate",
    "log_every",
    "logger",
    "save_every",
    "keep",
    "profile",
)


def differing(a: Any, b: Any) -> list[str]:
    """The keys, without those of the machine, in which two runs of one verb differ; none: they are the same run."""
    then, now = to_mapping(a), to_mapping(b)
    return [key for key in now if key not in (*MACHINE, "resume") and then[key] != now[key]]


@dataclass(frozen=True)
class Validation:
    """Evaluation while training, which chooses best.pt: every so many steps, on so many episodes of the protocol.

    selection: by the novel classes, as in the papers (on the test fold itself), by all base classes in val images, or by
        base classes that are held out
    held_out: of base_heldout; how many base classes, or their names. They are not trained on.
    curves: classes that are measured beside, to be looked at: the training classes and the novel ones. They choose nothing.
    """

    every: int
    episodes: int
    # Checkpoints from before these keys have none.
    selection: Literal["novel", "base", "base_heldout"] = "novel"
    held_out: tuple[str, ...] | int | None = None
    curves: tuple[Literal["base", "novel"], ...] = ()

    def __post_init__(self) -> None:
        require(self.every >= 1, "every", "a whole number of steps >= 1", self.every)
        require(self.episodes >= 1, "episodes", "a whole number >= 1", self.episodes)
        held_out = list(self.held_out) if isinstance(self.held_out, tuple) else self.held_out
        if self.selection != "base_heldout":
            expected = f"null with selection={self.selection} (or selection=base_heldout)"
            require(held_out is None, "held_out", expected, held_out)
        else:
            some = held_out >= 1 if isinstance(held_out, int) else bool(held_out)
            expected = "a number of base classes >= 1, or a list of their names, with selection=base_heldout"
            require(some, "held_out", expected, held_out)


@dataclass(frozen=True)
class CheckpointContent:
    """weights: tuned, what trains, and the pretrained weights by file and hash (base_weights.py); or full, all of them."""

    weights: Literal["tuned", "full"] = "tuned"


@dataclass(frozen=True, kw_only=True)
class _TrainingConfig:
    """What the verbs that train share. Keys with a default are later than the first checkpoints."""

    name: str
    fold: FoldNumber
    seed: int
    device: str
    workers: int
    cache_gb: float
    log_every: int
    resume: Path | None
    recipe: Recipe
    dataset: Choice = group(DATASETS)
    backbone: Choice = group(BACKBONES)
    precision: Precision = "float32"
    logger: LoggerName = "tensorboard"
    channels_last: bool = True
    compile: bool = False
    recompute: bool = False
    accumulate: int = 1
    save_every: int | None = None
    keep: int = 0
    overfit: int | None = None
    profile: int | None = None
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fold(self.fold, self.dataset)
        check_workers(self.workers)
        require(self.cache_gb >= 0, "cache_gb", "a number of gigabytes >= 0", self.cache_gb)
        check_seed(self.seed)
        require(self.log_every >= 1, "log_every", "a whole number of steps >= 1", self.log_every)
        require(self.accumulate >= 1, "accumulate", "a number of parts >= 1", self.accumulate)
        require(self.keep >= 0, "keep", "a number of checkpoints >= 0", self.keep)
        for key in ("save_every", "overfit", "profile"):
            value = getattr(self, key)
            require(value is None or value >= 1, key, "null or a whole number >= 1", value)

    @property
    def augment(self) -> Augment | None:
        """The recipe's augmentation; none where items are to be learnt by heart."""
        return self.recipe.augment if self.overfit is None else None


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(_TrainingConfig):
    validate_every: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.validate_every >= 1, "validate_every", "a whole number of steps >= 1", self.validate_every)
        # BatchNorm behind the pyramid's average over the whole image needs two of them.
        require(self.recipe.batch_size >= 2, "recipe.batch_size", "at least 2 to pretrain", self.recipe.batch_size)
        parts = self.recipe.batch_size // 2
        require(
            self.accumulate <= parts, "accumulate", f"at most {parts}, so that a part has 2 images", self.accumulate
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_TrainingConfig):
    shot: int
    protocol: Protocol
    validate: Validation
    method: Choice = group(METHODS)
    tuning: Choice = group(TUNINGS)
    way: int = 1
    checkpoint: CheckpointContent = CheckpointContent()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.way >= 1, "way", "a whole number >= 1", self.way)
        require(self.shot >= 1, "shot", "a whole number >= 1", self.shot)
        protocol, of_episodes = self.protocol, "a protocol of episodes of novel classes; evaluate takes this one"
        require(protocol.classes == "novel", "protocol", of_episodes, protocol.name)
        chosen, expected = self.validate.selection, "base or base_heldout, as with fold=all no class is novel"
        require(self.fold != "all" or chosen != "novel", "validate.selection", expected, chosen)
        curves = list(self.validate.curves)
        require(
            self.fold != "all" or "novel" not in curves, "validate.curves", "[base] or [], as no class is novel", curves
        )


@dataclass(frozen=True)
class OfficialBaseLearner:
    """No method: the PSPNet of BAM's stage 1, which an import makes a run of pretrain."""

    name: Literal["base_learner"]


@dataclass(frozen=True, kw_only=True)
class ImportConfig(TrainConfig):
    """The run that the official checkpoint `source` is to be the outcome of, written to `target`."""

    method: Choice | OfficialBaseLearner = group(METHODS)  # type: ignore[assignment]
    source: Path
    target: Path
    dilation: Literal["pfenet", "torchvision"] | None
