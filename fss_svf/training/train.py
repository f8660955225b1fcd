"""fss-svf train: meta-training of a method with a tuning."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from fss_svf import distributed, svf
from fss_svf.checkpoint import load_checkpoint
from fss_svf.config import TrainConfig
from fss_svf.data.augment import EvalTransform
from fss_svf.data.cache import cached
from fss_svf.data.dataset import Dataset
from fss_svf.data.loading import TrainEpisodes, collate_episodes
from fss_svf.data.manifest import EpisodeList
from fss_svf.data.synonyms import warn_of_twice
from fss_svf.episode import Episode
from fss_svf.evaluation import engine as evaluation_engine
from fss_svf.evaluation.base_classes import require_base_classes
from fss_svf.evaluation.conditions import require_shots
from fss_svf.evaluation.pictures import episode_pictures
from fss_svf.evaluation.plan import require_coverage
from fss_svf.evaluation.runs import evaluate_lists
from fss_svf.methods.method import check_way
from fss_svf.model import build_model, choose_device, refuse_leak, trainable_values, without_weights
from fss_svf.registry import DATASETS, METHODS
from fss_svf.reporting.pictures import draw_episodes
from fss_svf.training.loop import Task, check_same_data, fit, prepare, seen_in_training
from fss_svf.training.selection import make_selection
from fss_svf.training.tracking import write_scalars

log = logging.getLogger(__name__)
# A validation's codes: what goes over it waits in files of the run folder.
_VALIDATION_CACHE_GB = 2.0


def train(config: TrainConfig, out: Path) -> float:
    """Run `config` in the folder `out` and return the best validation mIoU, a fraction."""
    resumed = load_checkpoint(config.resume, "train") if config.resume else None
    check_way(METHODS.entry(config.method.name).build, config.way)  # type: ignore[arg-type]
    device = choose_device(config.device)
    torch.manual_seed(config.seed)

    dataset: Dataset = DATASETS.build(config.dataset)
    splits = {"train": dataset.split("train"), "val": dataset.split("val")}
    index, options = splits["train"].index, dataset.options
    protocol = config.protocol
    selection = make_selection(config, options, index, splits["val"].index)
    training, validating, base = selection.training, selection.validating, selection.base
    novel = [index.class_name(c) for c in selection.novel]
    selection.announce()
    warn_of_twice(index.class_names, options.synonyms)

    if resumed is not None:
        check_same_data(resumed, index.hash)
        # Built like a new one and then filled by `fit`, not restored: resuming is exact to the bit.
        model, _ = build_model(*map(without_weights, (config.method, config.backbone, config.tuning)))
        model.fit_state(resumed["model"])
        svf.fit_ranks(model, resumed["model"])
        trained_on = resumed["trained_on"]
    else:
        model, loaded = build_model(config.method, config.backbone, config.tuning)
        model.check_run(config.dataset.name, config.fold, [index.class_name(c) for c in base], config.backbone)
        for seen, what in (
            (loaded.trained_on, f"backbone.weights={loaded.source}"),
            (model.trained_on, f"method={config.method.name}"),
        ):
            refuse_leak(seen, novel, what, index.class_names, options.synonyms)
        log.info("%s", loaded)
        trained_on = seen_in_training(config, index, training.classes, loaded, model.trained_on)
    selection.warn_of_known(trained_on["classes"], options.synonyms)
    model.hold_out([base.index(c) + 1 for c in selection.held_out])
    model.check_shot(config.shot)
    require_shots(protocol, (config.shot,), model, config.way)
    require_base_classes(protocol, model, config.method.name)
    log.info(
        "tuning %s: %s trainable values in the backbone, %s in all",
        config.tuning.name,
        f"{trainable_values(model.backbone):,}",
        f"{trainable_values(model):,}",
    )
    prepare(model, model.backbone, config, device)

    shown_as = selection.shown if config.overfit is None else f"the first {config.overfit} training episodes"
    if config.overfit is None:
        split, validation = splits["val"], EpisodeList.drawn(validating, config.validate.episodes)
    else:  # on what it is to know by heart
        split, validation = splits["train"], EpisodeList.drawn(training, config.overfit)
        validating = training
    # Fewer episodes than in an evaluation may well miss a class: told, not an error.
    require_coverage([validation], validating.classes, replace(protocol, never_drawn="leave_out"))
    evaluation = evaluation_engine.Task(
        model,
        split,
        options.support_annotation,
        EvalTransform(protocol.size or config.recipe.tested_at, protocol.resize, protocol.pad),
        protocol,
        # A held-out class is base and new at once: the base classes are not measured beside it.
        base if model.segments_base and not selection.held_out else None,
    )
    codes = out / f"codes-{distributed.rank()}"
    if distributed.rank() == 0:
        for left in out.glob("codes-*"):  # by a validation that was killed
            shutil.rmtree(left)
    engine = evaluation_engine.Engine(
        device, config.recipe.batch_size, config.workers, _VALIDATION_CACHE_GB, codes, config.precision
    )
    shown = replace(validation, specs=validation.specs[:4])

    def loss(batch: Episode) -> dict[str, Tensor]:
        episode = batch.to(device).normalized()
        return model.losses(model(episode), episode)

    means_over = {"": "query_mask", **model.means_over}

    def counts(batch: Episode) -> dict[str, int]:
        return {term: batch.count(what) for term, what in means_over.items()}

    def validate(step: int, writer: SummaryWriter | None) -> dict[str, float]:
        (run,) = evaluate_lists(evaluation, engine, {config.shot: [validation]}).runs[config.shot]
        if writer is not None:
            pictures = episode_pictures(evaluation, engine, shown)
            writer.add_image("episodes", draw_episodes(pictures), step, dataformats="HWC")
            write_scalars(writer, {f"drift/{line.name}": line.drift_mean for line in svf.report(model.backbone)}, step)
        counts = run.counts
        scores = 100 * counts.miou(), 100 * counts.fb_iou()
        log.info("step %d: mIoU %.2f, FB-IoU %.2f on %s", step, *scores, shown_as)
        classes = {f"iou/{index.class_name(c)}": iou for c, iou in counts.per_class().items()}
        others = {f"miou_{name}": run.counts_of(name).miou() for name in run.others}
        if run.base is not None:
            found = run.base.scores(validating.classes, zero=False)
            others |= {f"miou_{name}": scores["miou"] for name, scores in found.items()}
        return {
            "score": counts.miou(),
            "miou": counts.miou(),
            "fb_iou": counts.fb_iou(),
            **others,
            **classes,
        }

    task = Task(
        verb="train",
        model=model,
        backbone=model.backbone,
        make=TrainEpisodes(
            cached(splits["train"], config.cache_gb, training.images()),
            training,
            config.recipe.size,
            config.augment,
            options.support_annotation,
            base if model.segments_base else None,
        ),
        collate=collate_episodes,
        identify=lambda number: training[number].named(index),
        epoch=len(training),
        loss=loss,
        counts=counts,
        validate=validate,
        every=config.validate.every,
        selection=f"best mIoU on {shown_as}",
        trained_on=trained_on,
    )
    return fit(task, config, device, out, resumed)
