"""The one door between YAML and code: plain mappings go in, checked dataclasses come out.

Beyond this module nobody sees a DictConfig. A key that no dataclass declares, a missing key and a value of the wrong
type are errors that name the key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from fss_svf.errors import ConfigError, did_you_mean
from fss_svf.registry import BACKBONES, DATASETS, METHODS, TUNINGS, Choice, Registry

T = TypeVar("T")
Precision = Literal["float32", "tf32", "bf16", "fp16"]
# Keys that say how a run is done, not what comes out of it: they may change when it goes on.
MACHINE = (
    "device",
    "workers",
    "cache_gb",
    "channels_last",
    "compile",
    "recompute",
    "accumulate",
    "log_every",
    "save_every",
    "keep",
    "profile",
)


def from_mapping(cls: type[T], values: object, where: str = "") -> T:
    """Build the dataclass `cls` from a plain mapping, checking keys and types all the way down.

    `where` is the key under which `values` stands, for messages. Raises ConfigError.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'config'}: expected a mapping of keys, got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise ConfigError(f"{_join(where, str(key))}: no such key{did_you_mean(str(key), fields)}")
    arguments = {}
    for name, f in fields.items():
        key = _join(where, name)
        if name in values:
            arguments[name] = _convert(hints[name], values[name], key, f.metadata.get("registry"))
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{key}: missing; it has no default")
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}" if where else str(error)) from None


def to_mapping(config: Any) -> Any:
    """The inverse of from_mapping: nested plain dicts, lists and scalars, ready for YAML, JSON or a checkpoint."""
    if isinstance(config, Choice):
        return {"name": config.name, **to_mapping(config.options)}
    if dataclasses.is_dataclass(config):
        return {f.name: to_mapping(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}
    if isinstance(config, Mapping):
        return {str(key): to_mapping(value) for key, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_mapping(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def differing(a: Any, b: Any) -> list[str]:
    """The keys, without those of the machine, in which two runs of one verb differ; none: they are the same run."""
    then, now = to_mapping(a), to_mapping(b)
    return [key for key in now if key not in (*MACHINE, "resume") and then[key] != now[key]]


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _convert(kind: Any, value: Any, key: str, registry: Registry | None = None) -> Any:
    """`value` as the annotated type `kind`, or ConfigError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, key, registry)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{key}: expected one of {' | '.join(map(str, arguments))}, got {value!r}")
        return value
    if kind is Choice:
        return _choice(value, key, registry)
    if dataclasses.is_dataclass(kind):
        return from_mapping(kind, value, key)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{key}: expected a list, got {value!r}")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise ConfigError(f"{key}: expected {len(arguments)} values, got {value!r}")
        element = arguments if arguments[-1] is not Ellipsis else arguments[:1] * len(value)
        return tuple(_convert(e, v, f"{key}[{i}]") for i, (e, v) in enumerate(zip(element, value)))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}: expected a mapping of keys, got {value!r}")
        return {str(k): _convert(arguments[1], v, _join(key, str(k))) for k, v in value.items()}
    return _scalar(kind, value, key)


def _convert_union(kinds: tuple[Any, ...], value: Any, key: str, registry: Registry | None) -> Any:
    if value is None and type(None) in kinds:
        return None
    errors = []
    for kind in (k for k in kinds if k is not type(None)):
        try:
            return _convert(kind, value, key, registry)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def _choice(value: Any, key: str, registry: Registry | None) -> Choice:
    assert registry is not None, f"{key}: a Choice field names its registry in its metadata"
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ConfigError(f"{key}: nothing chosen; say {registry.kind}=NAME with one of {', '.join(registry.names())}")
    entry = registry.entry(value["name"])
    return Choice(value["name"], from_mapping(entry.options, {k: v for k, v in value.items() if k != "name"}, key))


def _scalar(kind: type, value: Any, key: str) -> Any:
    if kind is Path and isinstance(value, (str, Path)):
        # Absolute, so that a run's config means the same from another folder.
        return Path(value).expanduser().absolute()
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", Path: "a path"}
    raise ConfigError(f"{key}: expected {names.get(kind, kind.__name__)}, got {value!r}")


def require(holds: bool, key: str, expected: str, got: object) -> None:
    """Raise ConfigError 'key: expected ..., got ...' unless `holds`."""
    if not holds:
        raise ConfigError(f"{key}: expected {expected}, got {got!r}")


def _group(registry: Registry) -> Any:
    return field(metadata={"registry": registry})


# ---------------------------------------------------------------------------------------------------------------------
# The pieces that several verbs share


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
    sgd has momentum, and weight decay in the gradient; adamw has beta1 = momentum, and decoupled weight decay.
    """

    name: Literal["sgd", "adamw"]
    lr: float
    backbone_lr: float
    momentum: float
    weight_decay: float
    # Checkpoints from before this key have none.
    backbone_weight_decay: float | None = None

    def __post_init__(self) -> None:
        for key in ("lr", "backbone_lr", "weight_decay"):
            require(getattr(self, key) >= 0, key, "a number >= 0", getattr(self, key))
        decay = self.backbone_weight_decay
        require(decay is None or decay >= 0, "backbone_weight_decay", "null or a number >= 0", decay)
        require(0 <= self.momentum < 1, "momentum", "a number from 0 to below 1", self.momentum)


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
        _check_size(self.size)
        _check_size(self.tested_at)
        require(self.batch_size >= 1, "batch_size", "a whole number >= 1", self.batch_size)
        require(self.epochs >= 1, "epochs", "a whole number >= 1", self.epochs)
        require(self.max_steps is None or self.max_steps >= 1, "max_steps", "null or >= 1", self.max_steps)

    @property
    def tested_at(self) -> int:
        """The input size of evaluations, in pixels."""
        return self.test_size or self.size


@dataclass(frozen=True)
class Protocol:
    """How a number is measured. Two results compare only where the hash of their protocols is the same.

    conf/protocol/svf.yaml says what each choice means, docs/protocols.md what moves numbers.

    size       of the input, in pixels, where the protocol fixes it; null: the recipe's
    half_width half the width that is asked of mIoU's 95% interval, a fraction; a wider one is told
    """

    name: str
    episodes: int
    runs: int
    seed: int
    queries: Literal["in_order", "random", "by_class", "balanced"]
    resize: Literal["pad", "squash"]
    label: Literal["original", "exact", "resized"]
    never_drawn: Literal["error", "leave_out", "zero"]
    # Fields with a default came later; a result from before them keeps its hash.
    pad: Literal["before_normalisation", "after_normalisation"] = "before_normalisation"
    novel_threshold: float | None = None
    size: int | None = None
    shots: Literal["train_k", "vote", "mean"] = "train_k"
    half_width: float | None = None
    selection: Literal["any", "not_novel"] = "any"

    def __post_init__(self) -> None:
        pads = self.resize == "pad" or self.pad == "before_normalisation"
        require(pads, "pad", f"before_normalisation, as resize={self.resize} pads nothing", self.pad)
        threshold = self.novel_threshold
        require(threshold is None or 0 <= threshold < 1, "novel_threshold", "null or in [0, 1)", threshold)
        # A vote is of masks, not of the probabilities that a threshold is held against.
        require(threshold is None or self.shots != "vote", "novel_threshold", "null with shots=vote", threshold)
        half = self.half_width
        require(half is None or 0 < half < 1, "half_width", "null or a fraction in (0, 1)", half)
        if self.size is not None:
            check_test_size(self.size, self.resize)
        require(self.episodes >= 1, "episodes", "a whole number >= 1", self.episodes)
        require(self.runs >= 1, "runs", "a whole number >= 1", self.runs)
        _check_seed(self.seed)

    def hash(self, **also: object) -> str:
        """Eight hex digits over every field and what else is part of the measurement (input size, data choices).

        But for two fields: `size`, since the size really used is to be given in `also`, and `half_width`, which asks
        for no other number.
        """
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        measured = {key: value for key, value in to_mapping(self).items() if key not in ("size", "half_width")}
        values = {key: value for key, value in measured.items() if value != defaults[key]}
        text = json.dumps([values, to_mapping(also)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Validation:
    """Evaluation while training, which chooses best.pt: every so many steps, on so many episodes of the protocol.

    selection: by the novel classes, as in the papers (on the test fold itself), or by base classes that are held out
    held_out: of base_heldout; how many base classes, or their names. They are not trained on.
    """

    every: int
    episodes: int
    # Checkpoints from before these keys have none.
    selection: Literal["novel", "base_heldout"] = "novel"
    held_out: tuple[str, ...] | int | None = None

    def __post_init__(self) -> None:
        require(self.every >= 1, "every", "a whole number of steps >= 1", self.every)
        require(self.episodes >= 1, "episodes", "a whole number >= 1", self.episodes)
        held_out = list(self.held_out) if isinstance(self.held_out, tuple) else self.held_out
        if self.selection == "novel":
            require(held_out is None, "held_out", "null with selection=novel (or selection=base_heldout)", held_out)
        else:
            some = held_out >= 1 if isinstance(held_out, int) else bool(held_out)
            expected = "a number of base classes >= 1, or a list of their names, with selection=base_heldout"
            require(some, "held_out", expected, held_out)


@dataclass(frozen=True)
class EpisodeFiles:
    """A table of episodes to write, and one to evaluate instead of drawing them."""

    save: Path | None
    load: Path | None


def check_fold(fold: int, dataset: Choice) -> None:
    """Raise ConfigError unless the dataset has such a fold."""
    last = dataset.options.num_folds - 1
    require(0 <= fold <= last, "fold", f"0..{last}", fold)


def _check_workers(workers: int) -> None:
    require(workers >= 0, "workers", "a whole number >= 0", workers)


def _check_seed(seed: int) -> None:
    require(seed >= 0, "seed", "a whole number >= 0", seed)


def _check_size(size: int) -> None:
    # The networks read at 1/8 and write at the input's size with aligned corners: both grids must share their corners.
    lower = (size - 1) // 8 * 8 + 1
    require(size >= 33 and size == lower, "size", f"n with (n - 1) % 8 == 0, such as {lower} or {lower + 8}", size)


def check_test_size(size: int, resize: str) -> None:
    """Raise ConfigError unless an evaluation can be of this size: as in training, and with resize=squash 8n too."""
    # At 8n the network's n positions stand at pixels 0, 8, ..., 8n - 8, but are stretched to the corners 0 and 8n - 1:
    # the mask grows by up to 7 pixels towards the lower right, 2% at 400. No published protocol pads to such a size.
    if resize != "squash" or size < 40 or size % 8:
        _check_size(size)


# ---------------------------------------------------------------------------------------------------------------------
# One dataclass a verb


@dataclass(frozen=True)
class PrepareConfig:
    name: str
    workers: int | None
    dataset: Choice = _group(DATASETS)

    def __post_init__(self) -> None:
        if self.workers is not None:
            _check_workers(self.workers)


@dataclass(frozen=True, kw_only=True)
class _TrainingConfig:
    """What the verbs that train share. Keys with a default are later than the first checkpoints."""

    name: str
    fold: int
    seed: int
    device: str
    workers: int
    cache_gb: float
    log_every: int
    resume: Path | None
    recipe: Recipe
    dataset: Choice = _group(DATASETS)
    backbone: Choice = _group(BACKBONES)
    precision: Precision = "float32"
    channels_last: bool = True
    compile: bool = False
    recompute: bool = False
    accumulate: int = 1
    save_every: int | None = None
    keep: int = 0
    overfit: int | None = None
    profile: int | None = None

    def __post_init__(self) -> None:
        check_fold(self.fold, self.dataset)
        _check_workers(self.workers)
        require(self.cache_gb >= 0, "cache_gb", "a number of gigabytes >= 0", self.cache_gb)
        _check_seed(self.seed)
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
    method: Choice = _group(METHODS)
    tuning: Choice = _group(TUNINGS)
    way: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.way >= 1, "way", "a whole number >= 1", self.way)
        require(self.shot >= 1, "shot", "a whole number >= 1", self.shot)


@dataclass(frozen=True)
class OfficialBaseLearner:
    """No method: the PSPNet of BAM's stage 1, which an import makes a run of pretrain."""

    name: Literal["base_learner"]


@dataclass(frozen=True, kw_only=True)
class ImportConfig(TrainConfig):
    """The run that the official checkpoint `source` is to be the outcome of, written to `target`."""

    method: Choice | OfficialBaseLearner = _group(METHODS)  # type: ignore[assignment]
    source: Path
    target: Path
    dilation: Literal["pfenet", "torchvision"] | None


@dataclass(frozen=True)
class EvaluateConfig:
    """What is null comes from the checkpoint; without a checkpoint nothing may be null but `checkpoint`."""

    name: str
    checkpoint: Path | None
    fold: int | None
    shot: tuple[int, ...] | int
    seed: int
    seeds: int
    size: int | None
    device: str
    workers: int
    batch_size: int
    cache_gb: float
    precision: Precision
    pictures: int
    resume: Path | None
    episodes: EpisodeFiles
    protocol: Protocol
    dataset: dict[str, Any]
    backbone: dict[str, Any]
    method: dict[str, Any]
    way: int | None = None

    def __post_init__(self) -> None:
        _check_workers(self.workers)
        _check_seed(self.seed)
        require(self.seeds >= 1, "seeds", "a number of runs >= 1", self.seeds)
        if self.size is not None:
            check_test_size(self.size, self.protocol.resize)
        require(self.way is None or self.way >= 1, "way", "null or a whole number >= 1", self.way)
        require(bool(self.shots) and all(s >= 1 for s in self.shots), "shot", "1 or a list such as [1,5]", self.shot)
        require(self.batch_size >= 1, "batch_size", "a whole number >= 1", self.batch_size)
        require(self.cache_gb >= 0, "cache_gb", "a number of gigabytes >= 0", self.cache_gb)
        require(self.pictures >= 0, "pictures", "a whole number >= 0", self.pictures)

    @property
    def shots(self) -> tuple[int, ...]:
        return (self.shot,) if isinstance(self.shot, int) else self.shot


ReportFormat = Literal["md", "tex", "csv", "html"]


@dataclass(frozen=True)
class ReportConfig:
    name: str
    runs: tuple[Path, ...] | Path
    out: Path | None
    formats: tuple[ReportFormat, ...]

    def __post_init__(self) -> None:
        require(bool(self.formats), "formats", "a list of md, tex, csv, html", self.formats)


@dataclass(frozen=True)
class Table:
    """A grid of trainings whose results make a table.

    rows           by their names: overrides of fss-svf train, separated by blanks; @base stands for the run folder of
                   the base learner of the row's backbone and the fold
    base_learners  overrides of fss-svf pretrain, by the name of the backbone
    train, evaluate  further overrides of every fss-svf train, of every fss-svf evaluate
    train_shot     each: a model for each of `shots`; a number: one model of so many, tested at all of them
    checkpoint     which of a training is evaluated: of its last step, or the best of its validations
    """

    name: str
    rows: dict[str, str]
    base_learners: dict[str, str]
    train: tuple[str, ...]
    evaluate: tuple[str, ...]
    folds: tuple[int, ...]
    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    train_shot: Literal["each"] | int
    checkpoint: Literal["last", "best"]

    def __post_init__(self) -> None:
        require(bool(self.rows), "rows", "overrides by names, at least one", self.rows)
        for key in ("folds", "shots", "seeds"):
            values = getattr(self, key)
            expected = "a list of different values, at least one"
            require(0 < len(set(values)) == len(values), key, expected, list(values))
        for seed in self.seeds:
            _check_seed(seed)
        require(all(shot >= 1 for shot in self.shots), "shots", "a list of whole numbers >= 1", list(self.shots))
        at = self.train_shot
        require(at == "each" or at >= 1, "train_shot", "each, or a whole number >= 1", at)


@dataclass(frozen=True)
class ReproduceConfig:
    """conf/reproduce.yaml says what each key means."""

    name: str
    table: Table
    plan: bool
    only: tuple[str, ...]
    overrides: tuple[str, ...]
    jobs: int
    processes: int
    tflops: float

    def __post_init__(self) -> None:
        require(self.jobs >= 1, "jobs", "a whole number >= 1", self.jobs)
        require(self.processes >= 1, "processes", "a whole number >= 1", self.processes)
        require(self.tflops > 0, "tflops", "a number > 0", self.tflops)


@dataclass(frozen=True)
class CompareConfig:
    """Two results, or two lists of them: folders of evaluate, or their result.json. Neither may be null."""

    name: str
    a: tuple[Path, ...] | Path | None
    b: tuple[Path, ...] | Path | None
    classes: tuple[str, ...] | None

    def __post_init__(self) -> None:
        require(self.classes != (), "classes", "a list of classes, or null", self.classes)


@dataclass(frozen=True)
class PredictConfig:
    """conf/predict.yaml says what each key means. checkpoint, support, query and out may not be null."""

    checkpoint: Path | None
    support: Path | None
    query: Path | None
    out: Path | None
    save_support: Path | None
    shots: Literal["train_k", "mean"]
    device: str
    precision: Precision
    batch_size: int
    overwrite: bool

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size", "a whole number >= 1", self.batch_size)


@dataclass(frozen=True)
class DemoConfig:
    """conf/demo.yaml says what each key means. checkpoint may not be null."""

    checkpoint: Path | None
    shots: Literal["train_k", "mean"]
    size: int | None
    device: str
    precision: Precision
    host: str
    port: int

    def __post_init__(self) -> None:
        require(1 <= self.port <= 65535, "port", "a number from 1 to 65535", self.port)


@dataclass(frozen=True)
class InfoConfig:
    """dataset: one to look at as it is given, in place of its defaults; empty: none."""

    dataset: dict[str, Any]
