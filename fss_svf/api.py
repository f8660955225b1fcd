"""A measurement in Python without configs: a dataset, a fold, its episodes, and any model that reads episodes.

    fold = fss_svf.load_dataset("toy", root="data/toy", prepare=True).fold(0)
    episodes = fss_svf.episodes(fold, protocol="svf", shot=1, size=97)
    result = fss_svf.evaluate(model, episodes)

`result` is what `fss-svf evaluate` writes into result.json: the same episodes, the same counts (docs/python.md).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from types import EllipsisType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fss_svf import conf_files
from fss_svf import model as model_building
from fss_svf.backbones.backbone import Backbone
from fss_svf.backbones.weights import LoadReport
from fss_svf.config import (
    EpisodeFiles,
    EvaluateConfig,
    Precision,
    Protocol,
    WayRule,
    check_fold,
    check_size,
    from_mapping,
)
from fss_svf.data import loading
from fss_svf.data.augment import EvalTransform
from fss_svf.data.dataset import Dataset, Split
from fss_svf.data.fold import Fold
from fss_svf.episode import Episode, Features, Prediction
from fss_svf.errors import ConfigError
from fss_svf.evaluation.conditions import warn_of_width
from fss_svf.evaluation.plan import Plan, make_plan
from fss_svf.evaluation.prepare_task import check_subject, make_task
from fss_svf.evaluation.result import data_source, make_result, save_result, warn_of_absent
from fss_svf.evaluation.runs import evaluate_lists
from fss_svf.evaluation.subject import Subject, make_subject
from fss_svf.evaluation.task import EngineOptions
from fss_svf.evaluation.ways import choose_rule
from fss_svf.methods.base_classes import BaseClassMethod
from fss_svf.methods.method import FewShotMethod
from fss_svf.model import choose_device, place, trainable_values
from fss_svf.registry import BACKBONES, DATASETS, Choice
from fss_svf.run_folder import register_resolvers

log = logging.getLogger(__name__)
# Where the models of load_model come from: the fields of Subject.
_origins: WeakKeyDictionary[nn.Module, Mapping[str, Any]] = WeakKeyDictionary()


@dataclass(frozen=True)
class LoadedDataset:
    """A prepared dataset by its options."""

    choice: Choice
    dataset: Dataset

    @cached_property
    def split(self) -> Split:
        """The images that are tested. Raises DataError where the dataset is not prepared."""
        return self.dataset.split("val")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of classes 1..C."""
        return self.split.index.class_names

    def fold(self, number: int) -> LoadedFold:
        """Fold `number`, whose novel classes are tested. Raises ConfigError for a number that is none."""
        check_fold(number, self.choice)
        return LoadedFold(self, Fold(self.dataset.options, self.class_names, number))


@dataclass(frozen=True)
class LoadedFold:
    """A fold of a dataset."""

    data: LoadedDataset
    fold: Fold

    @property
    def novel(self) -> list[str]:
        """Names of the classes that are tested."""
        return self.fold.names(self.fold.novel)

    @property
    def base(self) -> list[str]:
        """Names of the classes that a model may be trained on."""
        return self.fold.names(self.fold.base)


class Episodes:
    """The episodes of a protocol on a fold, of all its runs one after the other. `evaluate` measures a model on them.

    episodes[n], and iterating, give each as an Episode of one (B = 1) of normalised float images, its query mask in the
    input's size.
    """

    def __init__(self, fold: LoadedFold, plan: Plan, shot: int, size: int | None) -> None:
        self.fold, self.plan, self.shot, self.size = fold, plan, shot, size

    @property
    def protocol(self) -> Protocol:
        return self.plan.protocol

    def __len__(self) -> int:
        return self.protocol.episodes * self.protocol.runs

    def __getitem__(self, number: int) -> Episode:
        if not 0 <= number < len(self):
            raise IndexError(f"episode {number} of {len(self)}")
        run, place = divmod(number, self.protocol.episodes)
        spec, data = self.plan.episodes[self.shot][run][place], self.fold.data
        make = loading.Episodes(data.split, data.dataset.options.support_annotation)
        transform = self.transform(self.size)
        pairs = [transform(*pair) for pair in (make.query(spec), *make.supports(spec))]
        return loading.episode_of(pairs, spec, place).normalized()

    def __iter__(self) -> Iterator[Episode]:
        return (self[number] for number in range(len(self)))

    def transform(self, size: int | None) -> EvalTransform:
        """How an image becomes the input. Raises ConfigError without a size."""
        if size is None:
            raise ConfigError("size: protocol and model fix none; give the input's pixels, episodes(..., size=473)")
        return EvalTransform(size, self.protocol.resize, self.protocol.pad)


def load_dataset(
    name: str, root: str | Path | None = None, *, prepare: bool = False, workers: int | None = None, **options: Any
) -> LoadedDataset:
    """dataset=NAME with the options of conf/dataset/NAME.yaml, or those given here.

    root: the folder with its files. prepare: do what `fss-svf prepare` does first, with so many `workers` (None: one a
    core); done before, it returns at once. Raises ConfigError for an unknown name or option, DataError.
    """
    values = conf_files.values(f"dataset/{name}", {**options, **({} if root is None else {"root": root})})
    entry = DATASETS.entry(values.pop("name"))
    choice = Choice(name, from_mapping(entry.options, values, "dataset"))
    dataset: Dataset = DATASETS.build(choice)
    if prepare:
        dataset.prepare(workers)
    return LoadedDataset(choice, dataset)


def episodes(
    fold: LoadedFold,
    protocol: str | Protocol = "svf",
    shot: int = 1,
    *,
    size: int | None = None,
    way: int = 1,
    **changes: Any,
) -> Episodes:
    """The episodes that `fss-svf evaluate protocol=... shot=...` draws.

    protocol  a name of conf/protocol/, or a Protocol
    size      of the input in pixels; None: the protocol's, or that of the model's training
    way       classes an episode
    changes   of the protocol's fields: episodes=200, runs=1, seed=5

    Raises ConfigError, DataError.
    """
    if isinstance(protocol, str):
        chosen = from_mapping(Protocol, conf_files.values(f"protocol/{protocol}", changes), "protocol")
    else:
        chosen = replace(protocol, **changes)
    size = size or chosen.size
    if size is not None:
        check_size(size)
    plan = make_plan(fold.data.split.index, fold.fold, (shot,), chosen, EpisodeFiles(None, None), way)
    return Episodes(fold, plan, shot, size)


def build_backbone(
    name: str, *, weights: str | Path | Mapping[str, Tensor] | EllipsisType | None = ..., **options: Any
) -> tuple[Backbone, LoadReport]:
    """backbone=NAME with the options of conf/backbone/NAME.yaml, or those given here, in eval mode; and what was loaded.

        backbone, report = build_backbone("timm", model="vit_small_patch14_reg4_dinov2", weights="dinov2.pth")
        maps = backbone(images, taps=["blocks.2", "blocks.11", "norm"])  # each (B, C, h, w)

    weights: a state dict, or what backbone.weights may be: a file, a name, None (random); left out: as in the YAML.

    Images are normalised by ImageNet's mean and deviation, as everywhere here; a network that was trained with others
    converts them itself. Raises ConfigError for an unknown name or option, WeightsError.
    """
    state = weights if isinstance(weights, Mapping) else None
    if weights is not ...:
        options["weights"] = str(weights) if isinstance(weights, (str, Path)) else None
    values = conf_files.values(f"backbone/{name}", options)
    entry = BACKBONES.entry(values.pop("name"))
    chosen: Any = from_mapping(entry.options, values, "backbone")
    if state is not None:
        chosen = replace(chosen, weights=state)
    backbone, report = model_building.build_backbone(Choice(name, chosen))
    return backbone.eval(), report


def load_model(checkpoint: str | Path, weights: str | Path | None = None) -> FewShotMethod:
    """The model of a run folder of `fss-svf train` (its last.pt) or of a checkpoint file. Raises WeightsError.

    weights: the file of its pretrained weights, where that has moved since the training.
    """
    register_resolvers()
    moved = {} if weights is None else {"backbone": {"weights": str(weights)}}
    values = conf_files.values("evaluate", {"checkpoint": checkpoint, **moved})
    model, subject = make_subject(from_mapping(EvaluateConfig, values))
    _origins[model] = {f.name: getattr(subject, f.name) for f in fields(Subject)}
    return model


def evaluate(
    model: Callable[[Episode], Tensor | Prediction],
    episodes: Episodes,
    *,
    method: str | None = None,
    backbone: str = "custom",
    tuning: str = "custom",
    device: str | torch.device = "auto",
    batch_size: int = 8,
    workers: int = 0,
    cache_gb: float = 4,
    precision: Precision = "float32",
    way_rule: WayRule = "auto",
    out: str | Path | None = None,
) -> dict[str, Any]:
    """mIoU and FB-IoU of a model on episodes: the content of result.json (docs/results.md), every number a fraction.

    model      takes an Episode of up to `batch_size` episodes of normalised float images, without query_mask, and gives
               logits (B, 1 + N, H, W) at the query's size, or a Prediction. It runs without gradients and, where it is an
               nn.Module, in eval mode, on `device`; its mode is restored
    way_rule   how several classes become one mask (conf/evaluate.yaml); argmax: the model gets episodes of one class
    method, backbone, tuning  how the result names a model that is not of load_model; None: the name of its class
    out        a folder for result.json and episodes.csv, which `fss-svf report` and `compare` read

    Raises ConfigError and DataError as `fss-svf evaluate` does.
    """
    where = choose_device(device)
    seam = model if isinstance(model, FewShotMethod) else _WholeEpisodes(model)
    rule = choose_rule(seam, episodes.plan.way, way_rule)
    subject = replace(_subject(model, episodes, method or type(model).__name__, backbone, tuning), way_rule=rule)
    whole, protocol = isinstance(seam, _WholeEpisodes), episodes.protocol
    data, fold, plan, shot = episodes.fold.data, episodes.fold.fold, episodes.plan, episodes.shot
    base = check_subject(seam, subject, fold, protocol, (shot,), "model")
    if whole and protocol.shots == "mean" and shot > 1:
        log.warning("protocol.shots=mean: how the model combines its supports is its own matter, and is not checked")
    place(seam, where, channels_last=not whole)
    task = make_task(seam, subject, data.split, fold, plan, base)
    modes = {module: module.training for module in seam.modules()}
    try:
        with tempfile.TemporaryDirectory() as folder:
            how = EngineOptions(where, batch_size, workers, cache_gb, Path(folder) / "features", precision)
            tables = evaluate_lists(task, how, plan.episodes)[shot]
    finally:
        for module, training in modes.items():
            module.training = training
    result = make_result(subject, plan, shot, tables, data_source(data.dataset, plan), how)
    warn_of_absent(result)
    warn_of_width(result, protocol.half_width)
    if out is not None:
        save_result(Path(out), result, tables)
    return result


def _subject(model: Callable[..., Any], episodes: Episodes, method: str, backbone: str, tuning: str) -> Subject:
    origin: Mapping[str, Any] = _origins.get(model, {}) if isinstance(model, nn.Module) else {}
    size = episodes.size or origin.get("size")
    episodes.transform(size)  # raises without one
    unknown = {
        "method": method,
        "backbone": backbone,
        "tuning": tuning,
        "weights": "unknown",
        "weights_hash": None,
        "trainable": trainable_values(model.backbone) if isinstance(model, FewShotMethod) else 0,
        "checkpoint": None,
        "way_rule": None,
        "trained_on": model.trained_on if isinstance(model, BaseClassMethod) else None,
    }
    of_data = {"dataset": episodes.fold.data.choice, "fold": episodes.fold.fold.number, "way": episodes.plan.way}
    return Subject(**{**unknown, **origin, **of_data, "size": size})


class _Nothing(nn.Module):
    """A backbone of nothing, in a model's floating type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.zeros(0, dtype=dtype), requires_grad=False)


class _WholeEpisodes(FewShotMethod):
    """A model of whole episodes behind the seam of methods: what is encoded of an image is the image itself."""

    trainable = False
    many_ways = True

    def __init__(self, model: Callable[[Episode], Tensor | Prediction]) -> None:
        values = model.parameters() if isinstance(model, nn.Module) else ()
        dtype = next((value.dtype for value in values if value.is_floating_point()), torch.float32)
        super().__init__(_Nothing(dtype))  # type: ignore[arg-type]
        self.model = model

    def check_shot(self, shot: int) -> None:
        """Any K: the model says what it cannot do."""

    def check_size(self, size: int, key: str = "size", squash: bool = False) -> None:
        """Any size, likewise."""

    def encode_query(self, images: Tensor) -> Features:
        return {"image": images}

    def encode_support(self, images: Tensor, masks: Tensor) -> Features:
        return {"image": images, "mask": masks}

    def segment(self, query: Features, support: Features, size: tuple[int, int]) -> Prediction:
        # Not in inference mode, whose tensors a model that adapts itself to an episode could not use.
        with torch.inference_mode(False), torch.no_grad():
            images = query["image"].clone(), support["image"].clone(), support["mask"].clone()
            episode = Episode(*images)
            found = self.model(episode)
            prediction = found if isinstance(found, Prediction) else Prediction(found)
        expected = (len(images[0]), 1 + episode.way, *size)
        if tuple(prediction.logits.shape) != expected:
            raise ConfigError(
                f"model: expected logits of {expected}, a batch of background and classes at the query's size, got "
                f"{tuple(prediction.logits.shape)}; resize them to episode.size"
            )
        return prediction
