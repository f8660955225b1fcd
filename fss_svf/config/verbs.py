"""The config of each verb that is no training; its YAML in conf/ says what each key means."""

from __future__ import annotations

import mimetypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fss_svf.config.checks import FoldNumber, check_seed, check_size, check_workers, require
from fss_svf.config.mapping import group
from fss_svf.config.protocol import EpisodeFiles, Protocol
from fss_svf.config.training import FeaturesDtype, Precision
from fss_svf.errors import ConfigError
from fss_svf.registry import DATASETS, Choice

# How predictions of several classes become one mask; conf/evaluate.yaml says what each does.
WayRule = Literal["auto", "argmax", "joint"]


@dataclass(frozen=True)
class PrepareConfig:
    name: str
    check: bool
    workers: int | None
    dataset: Choice = group(DATASETS)
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_workers(self.workers)


@dataclass(frozen=True)
class EvaluateConfig:
    """What is null comes from the checkpoint or the packed model; without one nothing may be null but these two."""

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
    features_dtype: FeaturesDtype | None
    pictures: int
    resume: Path | None
    episodes: EpisodeFiles
    protocol: Protocol
    dataset: dict[str, Any]
    backbone: dict[str, Any]
    method: dict[str, Any]
    way: int | None = None
    way_rule: WayRule = "auto"
    reliance: bool = False
    model: str | None = None
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_workers(self.workers)
        check_seed(self.seed)
        require(self.seeds >= 1, "seeds", "a number of runs >= 1", self.seeds)
        if self.size is not None:
            check_size(self.size)
        require(self.way is None or self.way >= 1, "way", "null or a whole number >= 1", self.way)
        expected = f"null, as protocol={self.protocol.name} segments all classes at once"
        require(self.way is None or self.protocol.classes == "novel", "way", expected, self.way)
        require(bool(self.shots) and all(s >= 1 for s in self.shots), "shot", "1 or a list such as [1,5]", self.shot)
        require(self.batch_size >= 1, "batch_size", "a whole number >= 1", self.batch_size)
        require(self.cache_gb >= 0, "cache_gb", "a number of gigabytes >= 0", self.cache_gb)
        require(self.pictures >= 0, "pictures", "a whole number >= 0", self.pictures)

    def require_parts(self) -> None:
        """Raise ConfigError unless all is given that a checkpoint would bring."""
        missing = [f"{key}=NAME" for key in ("dataset", "method", "backbone") if "name" not in getattr(self, key)]
        if missing:
            raise ConfigError(
                f"give checkpoint=PATH or model=NAME; or, for a method without training, {', '.join(missing)}"
            )
        if self.size is None and self.protocol.size is None:
            raise ConfigError(
                "size: without a checkpoint evaluate needs the input size in pixels; take recipe.size of the trainings that "
                "it is compared with, such as size=473: another size is another protocol hash"
            )

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
class Row:
    """A row of a table.

    train   overrides of fss-svf train, separated by blanks; @base stands for the run folder of the base learner of the
            row's backbone and the fold
    folds   those of the table's that the row has; None: all
    seeds   likewise
    rates   candidates: one is chosen on held-out base classes, as Table.choose says; (): the rates are those of the recipe
    rate    the keys that take the chosen rate; None: those of Table.choose
    """

    train: str
    folds: tuple[FoldNumber, ...] | None = None
    seeds: tuple[int, ...] | None = None
    rates: tuple[float, ...] = ()
    rate: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        several = not self.rates or len(set(self.rates)) == len(self.rates) > 1
        require(several, "rates", "two or more different rates, or none", list(self.rates))
        require(self.rate is None or bool(self.rate), "rate", "keys such as [recipe.optimizer.lr], or null", [])
        require(self.rate is None or bool(self.rates), "rate", "null without rates", list(self.rate or ()))


@dataclass(frozen=True)
class Choosing:
    """How the rate of a row with candidates is chosen: a training each, of one fold and seed; the best mIoU on held-out base
    classes wins.

    train  further overrides of these trainings
    fold   of which the choice is made for all folds; each: every fold has its own
    seed   of their training
    rate   the keys that take a rate
    """

    train: tuple[str, ...]
    fold: Literal["each"] | int
    seed: int
    rate: tuple[str, ...]

    def __post_init__(self) -> None:
        check_seed(self.seed)
        require(bool(self.rate), "rate", "keys such as [recipe.optimizer.backbone_lr]", list(self.rate))


@dataclass(frozen=True)
class Table:
    """A grid of trainings whose results make a table.

    rows           by their names; a text is a Row of these overrides of fss-svf train
    base_learners  overrides of fss-svf pretrain, by the name of the backbone
    train, evaluate  further overrides of every fss-svf train, of every fss-svf evaluate
    train_shot     each: a model for each of `shots`; a number: one model of so many, tested at all of them
    checkpoint     which of a training is evaluated: of its last step, or the best of its validations
    tests          overrides of fss-svf evaluate by name, an evaluation each: on other datasets, by other protocols; empty:
                   one, on its own
    choose         how the rates of rows with candidates are chosen
    """

    name: str
    rows: dict[str, Row | str]
    base_learners: dict[str, str]
    train: tuple[str, ...]
    evaluate: tuple[str, ...]
    folds: tuple[FoldNumber, ...]
    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    train_shot: Literal["each"] | int
    checkpoint: Literal["last", "best"]
    tests: dict[str, str] = field(default_factory=dict)
    choose: Choosing | None = None

    def __post_init__(self) -> None:
        with_rates = [name for name in self.rows if self.row(name).rates]
        expected = f"fold, seed, rate and train, as rows have rates: {', '.join(with_rates)}"
        require(not with_rates or self.choose is not None, "choose", expected, None)
        require(bool(self.rows), "rows", "overrides by names, at least one", self.rows)
        for key in ("folds", "shots", "seeds"):
            values = getattr(self, key)
            expected = "a list of different values, at least one"
            require(0 < len(set(values)) == len(values), key, expected, list(values))
        for seed in self.seeds:
            check_seed(seed)
        require(all(shot >= 1 for shot in self.shots), "shots", "a list of whole numbers >= 1", list(self.shots))
        at = self.train_shot
        require(at == "each" or at >= 1, "train_shot", "each, or a whole number >= 1", at)

    def row(self, name: str) -> Row:
        """The row of this name, also where overrides are all that it says."""
        row = self.rows[name]
        return Row(row) if isinstance(row, str) else row


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
    device_model: str | None = None
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.jobs >= 1, "jobs", "a whole number >= 1", self.jobs)
        require(self.processes >= 1, "processes", "a whole number >= 1", self.processes)


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
    """conf/predict.yaml says what each key means. Given are support, query, out, and checkpoint, model or method."""

    checkpoint: Path | None
    method: dict[str, Any]
    backbone: dict[str, Any]
    support: Path | None
    query: Path | None
    out: Path | None
    save_support: Path | None
    shots: Literal["train_k", "mean"]
    size: int | None
    device: str
    precision: Precision
    batch_size: int
    overwrite: bool
    model: str | None = None
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kind = mimetypes.guess_type(self.support.name)[0] if self.support else None
        if self.support and (kind or "").startswith("image/") and not self.support.is_dir():
            raise ConfigError(
                f"support={self.support}: an image; give the folder that holds it with its mask or annotations.yaml "
                "(docs/predict.md)"
            )
        if self.size is not None:
            check_size(self.size)
        require(self.batch_size >= 1, "batch_size", "a whole number >= 1", self.batch_size)


@dataclass(frozen=True)
class DemoConfig:
    """conf/demo.yaml says what each key means. Given is checkpoint, model or method."""

    checkpoint: Path | None
    method: dict[str, Any]
    backbone: dict[str, Any]
    shots: Literal["train_k", "mean"]
    size: int | None
    device: str
    precision: Precision
    host: str
    port: int
    model: str | None = None
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.size is not None:
            check_size(self.size)
        require(1 <= self.port <= 65535, "port", "a number from 1 to 65535", self.port)


@dataclass(frozen=True)
class ModelsConfig:
    """model: the one whose card is printed; None: a list of all."""

    model: str | None


@dataclass(frozen=True)
class InfoConfig:
    """dataset: one to look at as it is given, in place of its defaults; empty: none."""

    dataset: dict[str, Any]
    plugins: tuple[str, ...] = ()
