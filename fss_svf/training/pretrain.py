"""fss-svf pretrain: the base learner of a fold, BAM's stage 1; its backbone also serves other methods."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from fss_svf import distributed
from fss_svf.backbones.backbone import Backbone
from fss_svf.checkpoint import load_checkpoint
from fss_svf.config import PretrainConfig
from fss_svf.data.augment import EvalTransform
from fss_svf.data.cache import cached
from fss_svf.data.dataset import Dataset
from fss_svf.data.fold import Fold
from fss_svf.data.loader import batches
from fss_svf.data.loading import BaseLabels, LabelBatch, LabelledImages, collate_labels
from fss_svf.data.synonyms import warn_of_twice
from fss_svf.episode import IGNORE, normalize
from fss_svf.errors import ConfigError
from fss_svf.evaluation.metric import class_iou, count_labels, mean_iou
from fss_svf.methods.base_learner import BaseLearner
from fss_svf.methods.blocks import argmax
from fss_svf.methods.method import cross_entropy, cross_entropy_of_each
from fss_svf.model import build_backbone, choose_device, refuse_leak, without_weights
from fss_svf.precision import computing
from fss_svf.registry import DATASETS
from fss_svf.training.batch_picture import draw_label_batch
from fss_svf.training.data_seen import check_same_data, data_hash, seen_in_training
from fss_svf.training.loggers import Logger, require_package
from fss_svf.training.loop import Task, fit, prepare

log = logging.getLogger(__name__)


def refuse_double_counts(backbone: Backbone) -> None:
    """Raise ConfigError where recompute=true would count a batch twice in BatchNorm's statistics."""
    if backbone.recompute_counts_twice:
        raise ConfigError(
            "recompute=true: the BatchNorms of this network of timm, which train in pretrain, would count a batch twice; "
            "set it to false"
        )


def pretrain(config: PretrainConfig, out: Path) -> float:
    """Run `config` in the folder `out` and return the best mIoU of the base classes, a fraction."""
    resumed = load_checkpoint(config.resume, "pretrain") if config.resume else None
    require_package(config.logger)
    device = choose_device(config.device)
    if distributed.world() > 1 and device.type == "cpu":
        raise ConfigError(
            f"pretrain: {distributed.world()} processes on the CPU, where PyTorch has no BatchNorm over processes; start "
            "one, or use GPUs"
        )
    torch.manual_seed(config.seed)

    dataset: Dataset = DATASETS.build(config.dataset)
    train, val = dataset.split("train"), dataset.split("val")
    # Episodes of 0 shots: their queries are the images of the fold's training list, once an epoch.
    fold = Fold(dataset.options, train.index.class_names, config.fold)
    sampler = fold.sampler(train.index, "train", 0, config.seed, "shuffled_epochs")
    names = fold.names(sampler.classes)
    if resumed is not None:
        check_same_data(resumed, data_hash(dataset.options, train.index))
    backbone, loaded = build_backbone(without_weights(config.backbone) if resumed else config.backbone)
    backbone.requires_grad_(True)  # but what comes behind the deep map, where no loss reaches
    known, synonyms = fold.class_names, dataset.options.synonyms
    warn_of_twice(known, synonyms)
    refuse_leak(loaded.trained_on, fold.names(fold.novel), f"backbone.weights={loaded.source}", known, synonyms)
    log.info("%s", loaded)
    backbone.check_size(config.recipe.size, "recipe.size")
    backbone.check_size(config.recipe.tested_at, "recipe.test_size")
    if config.recompute:
        refuse_double_counts(backbone)
    log.info("fold %s: %s training images of %d base classes", config.fold, f"{len(sampler):,}", len(names))
    model = BaseLearner(backbone, len(names))
    prepare(model, backbone, config, device)

    recipe = config.recipe
    holding = val.index.having(sampler.classes, dataset.options.min_area).nonzero()[0]
    test = LabelledImages(val, holding, sampler.classes, EvalTransform(recipe.tested_at, "pad"))

    def loss(batch: LabelBatch) -> dict[str, Tensor]:
        batch = batch.to(device)
        return {"main": cross_entropy(model(normalize(batch.images)), batch.labels)}

    def counts(batch: LabelBatch) -> dict[str, int]:
        return {"": int((batch.labels != IGNORE).sum())}

    def validate(step: int, logger: Logger | None) -> dict[str, float]:
        model.eval()
        counts, losses = torch.zeros(len(names) + 1, 2, dtype=torch.int64), torch.zeros((), device=device)
        mine = range(distributed.rank(), len(holding), distributed.world())
        pinned = device.type == "cuda"
        for batch in batches(test, collate_labels, mine, recipe.batch_size, config.workers, pinned):
            with torch.no_grad(), computing(device, config.precision):
                there = batch.to(device)
                logits = model(normalize(there.images))
                losses += cross_entropy_of_each(logits, there.labels).sum()
                predicted = argmax(logits, 1).cpu()
            counts += count_labels(predicted, batch.labels, len(names) + 1).sum(0)
        iou = class_iou(torch.stack(distributed.gather(counts)).sum(0).numpy())[1:]
        miou = float(mean_iou(iou))
        log.info("step %d: mIoU of the base classes %.2f", step, 100 * miou)
        (loss,) = distributed.total([float(losses)])
        numbers = {"score": miou, "base_miou": miou, "val/loss": loss / max(1, len(holding))}
        return {**numbers, **{f"iou/{n}": float(v) for n, v in zip(names, iou)}}

    task = Task(
        verb="pretrain",
        model=model,
        backbone=backbone,
        make=BaseLabels(cached(train, config.cache_gb, sampler.images()), sampler, recipe.size, config.augment),
        collate=collate_labels,
        identify=lambda number: {"image": str(train.index.names[sampler[number].query])},
        epoch=len(sampler),
        loss=loss,
        counts=counts,
        draw=draw_label_batch,
        validate=validate,
        every=config.validate_every,
        selection="best mIoU on the base classes",
        trained_on=resumed["trained_on"] if resumed else seen_in_training(config, train.index, sampler.classes, loaded),
        following=f"fss-svf train method=bam dataset={config.dataset.name} fold={config.fold} "
        f"backbone={config.backbone.name} method.base_learner={{run}} backbone.weights={{run}}/checkpoints/last.pt",
    )
    return fit(task, config, device, out, resumed)
