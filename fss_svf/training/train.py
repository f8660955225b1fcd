"""fss-svf train: meta-training of a method with a tuning."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fss_svf import svf
from fss_svf.backbones.weights import LoadReport
from fss_svf.base_weights import BaseWeights, base_weights, completed
from fss_svf.checkpoint import load_checkpoint
from fss_svf.config import TrainConfig
from fss_svf.data.cache import cached
from fss_svf.data.dataset import Dataset, Split
from fss_svf.data.fold import Fold
from fss_svf.data.index import Index
from fss_svf.data.loading import TrainEpisodes, collate_episodes
from fss_svf.data.synonyms import warn_of_twice
from fss_svf.episode import Episode
from fss_svf.errors import ConfigError
from fss_svf.evaluation.base_classes import require_base_classes
from fss_svf.evaluation.conditions import require_shots
from fss_svf.methods.base_classes import BaseClassMethod
from fss_svf.methods.method import FewShotMethod, check_way, method_class, require_differentiable
from fss_svf.model import build_model, choose_device, refuse_leak, start_on_base, trainable_values, without_weights
from fss_svf.registry import DATASETS, Choice
from fss_svf.training.batch_picture import draw_episode_batch
from fss_svf.training.data_seen import check_same_data, data_hash, seen_in_training
from fss_svf.training.loggers import require_package
from fss_svf.training.loop import Task, fit, prepare
from fss_svf.training.selection import Selection, make_selection
from fss_svf.training.validation import Validation
from fss_svf.tuning.svf import SVFOptions

log = logging.getLogger(__name__)


def train(config: TrainConfig, out: Path) -> float:
    """Run `config` in the folder `out` and return the best validation mIoU, a fraction."""
    resumed = load_checkpoint(config.resume, "train") if config.resume else None
    check_way(method_class(config.method.name), config.way)
    require_differentiable(config.method.name)
    require_package(config.logger)
    device = choose_device(config.device)
    torch.manual_seed(config.seed)

    dataset: Dataset = DATASETS.build(config.dataset)
    splits = {"train": dataset.split("train"), "val": dataset.split("val")}
    index = splits["train"].index
    fold = Fold(dataset.options, index.class_names, config.fold)
    selection = make_selection(config, fold, index, splits["val"].index)
    selection.announce()
    warn_of_twice(index.class_names, dataset.options.synonyms)

    model, trained_on, base = _build(config, index, selection, resumed)
    prepare(model, model.backbone, config, device)
    validation = Validation(config, splits, selection, model, device, out)
    task = _task(config, splits["train"], selection, model, trained_on, base, validation, device)
    return fit(task, config, device, out, resumed)


def _build(
    config: TrainConfig, index: Index, selection: Selection, resumed: dict[str, Any] | None
) -> tuple[FewShotMethod, dict[str, Any], BaseWeights | None]:
    """The model, which suits the fold and the protocol, what a checkpoint says of its data, and what it leaves out.

    index: of the training images. Where `resumed` leaves weights out, its model is whole afterwards.
    Raises ConfigError, DataError and WeightsError.
    """
    fold, synonyms = selection.fold, selection.fold.options.synonyms
    pretrained: tuple[Choice, LoadReport] | None = None  # the weights that checkpoints may leave out
    if resumed is not None and resumed.get("base"):
        check_same_data(resumed, data_hash(config.dataset.options, index))
        what, was = f"resume={config.resume}", resumed["config"]["backbone"].get("weights")
        now = getattr(config.backbone.options, "weights", None)
        choices = config.method, config.backbone, config.tuning
        moved = now if now != was else None
        model, loaded, found = start_on_base(*choices, resumed["model"], resumed["base"], what, moved)
        pretrained = found, loaded
        resumed["model"] = completed(model, resumed["model"], resumed["base"], what)
        trained_on = resumed["trained_on"]
    elif resumed is not None:
        check_same_data(resumed, data_hash(config.dataset.options, index))
        # Built like a new one and then filled by `fit`, not restored: resuming is exact to the bit.
        model, _ = build_model(*map(without_weights, (config.method, config.backbone, config.tuning)))
        if isinstance(model, BaseClassMethod):
            model.fit_state(resumed["model"])
        svf.fit_ranks(model, resumed["model"])
        trained_on = resumed["trained_on"]
    else:
        model, loaded = build_model(config.method, config.backbone, config.tuning)
        of_base_learner = None
        if isinstance(model, BaseClassMethod):
            model.check_run(config.dataset.name, config.fold, fold.names(fold.base), config.backbone)
            of_base_learner = model.trained_on
        for seen, what in (
            (loaded.trained_on, f"backbone.weights={loaded.source}"),
            (of_base_learner, f"method={config.method.name}"),
        ):
            refuse_leak(seen, fold.names(fold.novel), what, index.class_names, synonyms)
        log.info("%s", loaded)
        trained_on = seen_in_training(config, index, selection.training.classes, loaded, of_base_learner)
        pretrained = config.backbone, loaded
    selection.warn_of_known(trained_on["classes"], synonyms)
    if isinstance(model, BaseClassMethod):
        if not (selection.novel_choose or selection.held_out):
            raise ConfigError(
                f"validate.selection=base: the base learner of method={config.method.name} takes every base class for "
                "background; say validate.selection=base_heldout"
            )
        if "base" in selection.curves:
            raise ConfigError(
                f"validate.curves: the base learner of method={config.method.name} takes every base class for background, "
                "so that there is no curve of base; say validate.curves=[novel]"
            )
        model.hold_out([fold.base.index(c) + 1 for c in selection.held_out])
    model.check_shot(config.shot)
    protocol, recipe = config.protocol, config.recipe
    model.check_size(recipe.size, "recipe.size")
    tested = "recipe.test_size" if protocol.size is None else "protocol.size"
    model.check_size(protocol.size or recipe.tested_at, tested, protocol.resize == "squash")
    require_shots(config.protocol, (config.shot,), model, config.way)
    require_base_classes(config.protocol, model, config.method.name, config.way)
    log.info(
        "tuning %s: %s trainable values in the backbone, %s in all",
        config.tuning.name,
        f"{trainable_values(model.backbone):,}",
        f"{trainable_values(model):,}",
    )
    if isinstance(config.tuning.options, SVFOptions):
        _warn_of_svf(config, config.tuning.options, random=pretrained is not None and pretrained[1].source == "random")
    tuned = config.checkpoint.weights == "tuned"
    return model, trained_on, base_weights(model, *pretrained) if tuned and pretrained else None


def _warn_of_svf(config: TrainConfig, svf: SVFOptions, random: bool) -> None:
    """What trains, and is not what was wanted. random: whether the backbone begins with random weights."""
    name = config.tuning.name
    if random:
        log.warning(
            "tuning=%s on random weights: their singular vectors stay as drawn; set backbone.weights to pretrained ones, or "
            "train all (tuning=full)",
            name,
        )
    if config.recipe.optimizer.name == "adamw" and svf.parametrisation == "direct" and "S" in svf.train:
        log.warning(
            "tuning=%s with recipe.optimizer.name=adamw: its steps have the size of the rate, so that large singular values "
            "hardly move and small ones change much; tuning.parametrisation=scale moves all by the same share (docs/svf.md)",
            name,
        )


def _task(
    config: TrainConfig,
    split: Split,
    selection: Selection,
    model: FewShotMethod,
    trained_on: dict[str, Any],
    base: BaseWeights | None,
    validation: Validation,
    device: torch.device,
) -> Task:
    """The training as the loop runs it: its episodes, their losses, its validation."""
    training, fold = selection.training, selection.fold
    means_over = {"": "query_mask", **model.means_over}

    def loss(batch: Episode) -> dict[str, Tensor]:
        episode = batch.to(device).normalized()
        return model.losses(model(episode), episode)

    return Task(
        verb="train",
        model=model,
        backbone=model.backbone,
        make=TrainEpisodes(
            cached(split, config.cache_gb, training.images()),
            training,
            config.recipe.size,
            config.augment,
            fold.options.support_annotation,
            fold.base if isinstance(model, BaseClassMethod) else None,
        ),
        collate=collate_episodes,
        identify=lambda number: training[number].named(split.index),
        epoch=len(training),
        loss=loss,
        counts=lambda batch: {term: batch.count(what) for term, what in means_over.items()},
        draw=draw_episode_batch,
        validate=validation,
        every=config.validate.every,
        selection=f"best mIoU on {validation.on}",
        trained_on=trained_on,
        base=base,
    )
