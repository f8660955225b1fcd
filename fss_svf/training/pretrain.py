"""fss-svf pretrain: the base learner of a fold, BAM's stage 1; its backbone also serves other methods."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from fss_svf import distributed
from fss_svf.checkpoint import load_checkpoint
from fss_svf.config import PretrainConfig
from fss_svf.data.augment import EvalTransform
from fss_svf.data.cache import cached
from fss_svf.data.dataset import Dataset
from fss_svf.data.episodes import make_sampler, split_classes
from fss_svf.data.loader import batches
from fss_svf.data.loading import BaseLabels, LabelBatch, LabelledImages, collate_labels
from fss_svf.data.synonyms import warn_of_twice
from fss_svf.episode import IGNORE, normalize
from fss_svf.errors import ConfigError
from fss_svf.evaluation.counts import class_iou, confusion_matrix
from fss_svf.methods.base_learner import BaseLearner
from fss_svf.methods.method import cross_entropy
from fss_svf.model import build_backbone, choose_device, refuse_leak, without_weights
from fss_svf.precision import computing
from fss_svf.registry import DATASETS
from fss_svf.training.loop import Task, check_same_data, fit, prepare, seen_in_training

log = logging.getLogger(__name__)


def pretrain(config: PretrainConfig, out: Path) -> float:
    """Run `config` in the folder `out` and return the best mIoU of the base classes, a fraction."""
    resumed = load_checkpoint(config.resume, "pretrain") if config.resume else None
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
    sampler = make_sampler(train.index, dataset.options, config.fold, "train", 0, config.seed, "shuffled_epochs")
    names = [train.index.class_name(c) for c in sampler.classes]
    novel = [train.index.class_name(c) for c in split_classes(train.index, dataset.options, config.fold, "val")]
    if resumed is not None:
        check_same_data(resumed, train.index.hash)
    backbone, loaded = build_backbone(without_weights(config.backbone) if resumed else config.backbone)
    known, synonyms = train.index.class_names, dataset.options.synonyms
    warn_of_twice(known, synonyms)
    refuse_leak(loaded.trained_on, novel, f"backbone.weights={loaded.source}", known, synonyms)
    log.info("%s", loaded)
    log.info("fold %d: %s training images of %d base classes", config.fold, f"{len(sampler):,}", len(names))
    model = BaseLearner(backbone, len(names))
    prepare(model, backbone, config, device)

    recipe = config.recipe
    holding = val.index.having(sampler.classes, dataset.options.min_area).nonzero()[0]
    test = LabelledImages(val, holding, sampler.classes, EvalTransform(recipe.tested_at, "pad"))

    def loss(batch: LabelBatch) -> dict[str, Tensor]:
        logits = model(normalize(batch.images.to(device)))
        return {"main": cross_entropy(logits, batch.labels.to(device))}

    def counts(batch: LabelBatch) -> dict[str, int]:
        return {"": int((batch.labels != IGNORE).sum())}

    def validate(step: int, writer: SummaryWriter | None) -> dict[str, float]:
        model.eval()
        confusion = torch.zeros(len(names) + 1, len(names) + 1, dtype=torch.int64)
        mine = range(distributed.rank(), len(holding), distributed.world())
        for batch in batches(test, collate_labels, mine, recipe.batch_size, config.workers):
            with torch.no_grad(), computing(device, config.precision):
                predicted = model(normalize(batch.images.to(device))).argmax(1).cpu()
            confusion += confusion_matrix(predicted, batch.labels, len(names) + 1)
        confusion = torch.stack(distributed.gather(confusion)).sum(0)
        iou = class_iou(confusion)[1:]
        miou = float(iou.nanmean())
        log.info("step %d: mIoU of the base classes %.2f", step, 100 * miou)
        return {"score": miou, "base_miou": miou, **{f"iou/{n}": float(v) for n, v in zip(names, iou)}}

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
        validate=validate,
        every=config.validate_every,
        selection="best mIoU on the base classes",
        trained_on=resumed["trained_on"] if resumed else seen_in_training(config, train.index, sampler.classes, loaded),
    )
    return fit(task, config, device, out, resumed)
