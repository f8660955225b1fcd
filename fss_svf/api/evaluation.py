"""evaluate: the numbers of `fss-svf evaluate`, of any model that reads an episode."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fss_svf.api.choosing import compose
from fss_svf.api.data import Episodes, LoadedFold, drawn
from fss_svf.api.models import origins
from fss_svf.config import EvaluateConfig, FeaturesDtype, Precision, Protocol, WayRule, from_mapping
from fss_svf.data.manifest import EpisodeList
from fss_svf.episode import Episode, Features, Prediction
from fss_svf.errors import ConfigError
from fss_svf.evaluation.conditions import warn_of_width
from fss_svf.evaluation.groups import ListKey
from fss_svf.evaluation.prepare_task import check_subject, make_task
from fss_svf.evaluation.reliance import measure_reliance, save_wrong_episodes, wrong_lists
from fss_svf.evaluation.result import data_source, make_result, save_result, warn_of_absent
from fss_svf.evaluation.runs import evaluate_lists
from fss_svf.evaluation.subject import Subject
from fss_svf.evaluation.task import EngineOptions
from fss_svf.evaluation.ways import choose_rule
from fss_svf.methods.base_classes import BaseClassMethod
from fss_svf.methods.method import FewShotMethod
from fss_svf.model import choose_device, place, trainable_values

log = logging.getLogger(__name__)


def evaluate(
    model: Callable[[Episode], Tensor | Prediction],
    fold: LoadedFold,
    protocol: str | Protocol = "svf",
    shot: int = 1,
    *,
    size: int | None = None,
    way: int | None = None,
    way_rule: WayRule = "auto",
    device: str | torch.device = "auto",
    batch_size: int = 8,
    workers: int = 2,
    cache_gb: float = 4,
    precision: Precision = "float32",
    features_dtype: FeaturesDtype | None = None,
    reliance: bool = False,
    method: str | None = None,
    backbone: str = "custom",
    tuning: str = "custom",
    out: str | Path | None = None,
) -> dict[str, Any]:
    """mIoU and FB-IoU of a model on a fold: the content of result.json (docs/results.md), every number a fraction.

    model      takes an Episode of up to `batch_size` episodes of normalised float images, without query_mask, and gives
               logits (B, 1 + N, H, W) at the query's size, or a Prediction. It runs without gradients and, where it is an
               nn.Module, in eval mode, on `device`; its mode is restored
    protocol   a name of conf/protocol/, or a Protocol: Protocol.load("svf", episodes=200)
    size       of the input in pixels; None: the protocol's, or that of the training of load_model's model
    way        classes an episode; None: those of the training of load_model's model, else 1
    way_rule   how several classes become one mask (conf/evaluate.yaml); argmax: the model gets episodes of one class
    device, batch_size, workers, cache_gb, precision, features_dtype, reliance
               as in conf/evaluate.yaml
    method, backbone, tuning
               how the result names a model that was not made by this package; method=None: by its class
    out        a folder for result.json and episodes.csv (and reliance.csv), which `fss-svf report` and `compare` read

    Raises ConfigError, DataError and WeightsError as `fss-svf evaluate` does.

    >>> def background(episode):
    ...     one = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    ...     return one.expand(len(episode.query_image), 2, *episode.size)
    >>> result = fss_svf.evaluate(background, fold, size=65, workers=0)
    >>> result["miou"], result["num_episodes"]
    (0.0, 1000)
    """
    origin: Mapping[str, Any] = origins.get(model, {}) if isinstance(model, nn.Module) else {}
    keys: dict[str, Any] = {
        "shot": shot,
        "size": size,
        "way": way,
        "way_rule": way_rule,
        "device": str(device),
        "batch_size": batch_size,
        "workers": workers,
        "cache_gb": cache_gb,
        "precision": precision,
        "features_dtype": features_dtype,
        "reliance": reliance,
    }
    config = from_mapping(EvaluateConfig, compose("evaluate", {"protocol": protocol}, keys))
    if out is not None and (Path(out) / "checkpoints").exists():
        raise ConfigError(f"out={out}: holds a training; choose another folder")
    where = choose_device(config.device)
    seam = model if isinstance(model, FewShotMethod) else _WholeEpisodes(model)
    learner = isinstance(seam, BaseClassMethod)
    episodes = drawn(fold, config.protocol, shot, size, way, origin.get("way", 1), learner)
    named = {"method": method or type(model).__name__, "backbone": backbone, "tuning": tuning}
    subject = _subject(model, episodes, origin or named)
    subject = replace(subject, way_rule=choose_rule(seam, subject.way, way_rule))
    whole, plan, data = isinstance(seam, _WholeEpisodes), episodes.plan, fold.data
    subject, base = check_subject(seam, subject, fold.fold, plan.protocol, (shot,), "model")
    if whole and plan.protocol.shots == "mean" and shot > 1:
        log.warning("protocol.shots=mean: how the model combines its supports is its own matter, and is not checked")
    modes = {module: module.training for module in seam.modules()}
    place(seam, where, channels_last=not whole)
    task = make_task(seam, subject, data.split, fold.fold, plan, base)
    wrong = wrong_lists(plan, fold.fold) if reliance else {}
    lists: dict[ListKey, list[EpisodeList]] = dict(plan.episodes.items())
    lists.update(wrong)
    try:
        with tempfile.TemporaryDirectory() as folder:
            features = Path(folder) / "features"
            how = EngineOptions(where, batch_size, workers, cache_gb, features, precision, features_dtype)
            of_lists = evaluate_lists(task, how, lists)
    finally:
        for module, training in modes.items():
            module.training = training
    tables = of_lists[shot]
    measured = measure_reliance(shot, tables, wrong, of_lists, fold.fold.base) if reliance else None
    result = make_result(subject, plan, shot, tables, data_source(data.dataset, plan), how, measured)
    warn_of_absent(result)
    warn_of_width(result, plan.protocol.half_width)
    if out is not None:
        if reliance:
            save_wrong_episodes(Path(out) / "reliance.csv", shot, wrong, of_lists)
        save_result(Path(out), result, tables)
    return result


def _subject(model: Callable[..., Any], episodes: Episodes, origin: Mapping[str, Any]) -> Subject:
    size = episodes.size or origin.get("size")
    episodes.transform(size)  # raises without one
    unknown = {
        "weights": "unknown",
        "weights_hash": None,
        "trainable": trainable_values(model.backbone) if isinstance(model, FewShotMethod) else 0,
        "checkpoint": None,
        "way_rule": None,
        "trained_on": model.trained_on if isinstance(model, BaseClassMethod) else None,
    }
    of_data = {"dataset": episodes.fold.data.choice, "fold": episodes.fold.fold.number}
    way = episodes.plan.way if episodes.protocol.classes == "novel" else None
    return Subject(**{**unknown, **origin, **of_data, "way": way, "size": size})


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
