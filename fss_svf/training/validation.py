"""The validation of a meta-training: episodes that choose its best checkpoint, evaluated as `fss-svf evaluate` does."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from math import isnan
from pathlib import Path

import torch

from fss_svf import distributed, svf
from fss_svf.config import TrainConfig
from fss_svf.data.augment import EvalTransform
from fss_svf.data.dataset import Split
from fss_svf.data.manifest import EpisodeList
from fss_svf.evaluation.base_classes import base_scores
from fss_svf.evaluation.episode_loss import EpisodeLoss
from fss_svf.evaluation.metric import scores
from fss_svf.evaluation.pictures import episode_pictures
from fss_svf.evaluation.plan import require_coverage
from fss_svf.evaluation.runs import evaluate_lists
from fss_svf.evaluation.task import EngineOptions, EvaluationTask
from fss_svf.evaluation.ways import choose_rule
from fss_svf.methods.base_classes import BaseClassMethod
from fss_svf.methods.method import FewShotMethod
from fss_svf.reporting.pictures import draw_episodes
from fss_svf.training.drift import drift_by_size, drift_by_stage
from fss_svf.training.loggers import Logger
from fss_svf.training.selection import Selection

log = logging.getLogger(__name__)
# Features of a validation: what goes over it waits in files of the run folder.
_CACHE_GB = 2.0


class Validation:
    """Call it with the step and a logger (None in all processes but the first): scores by name, "score" the one that counts.

    on  what it is measured on, in words: the novel classes, held-out ones, or with `overfit` the training episodes
    """

    def __init__(
        self,
        config: TrainConfig,
        splits: Mapping[str, Split],
        selection: Selection,
        model: FewShotMethod,
        device: torch.device,
        out: Path,
    ) -> None:
        protocol, fold = config.protocol, selection.fold
        if config.overfit is None:
            self.on, self.sampler, split, episodes = (
                selection.shown,
                selection.validating,
                "val",
                config.validate.episodes,
            )
        else:  # on what it is to know by heart
            self.on, self.sampler = f"the first {config.overfit} training episodes", selection.training
            split, episodes = "train", config.overfit
        self.shot, self.model = config.shot, model
        self.episodes = EpisodeList.drawn(self.sampler, episodes)
        # Fewer episodes than in an evaluation may well miss a class: a log line, not an error.
        require_coverage([self.episodes], self.sampler.classes, replace(protocol, never_drawn="leave_out"))
        self.task = EvaluationTask(
            model,
            splits[split],
            fold.options.support_annotation,
            EvalTransform(protocol.size or config.recipe.tested_at, protocol.resize, protocol.pad),
            protocol,
            self.sampler.classes,
            # A held-out class is base and new at once: the base classes are not measured beside it.
            fold.base if isinstance(model, BaseClassMethod) and selection.novel_choose else None,
            choose_rule(model, config.way, "auto"),
        )
        self.curves = {
            name: (
                replace(self.task, split=splits["val"], classes=sampler.classes, base=None),
                self.episodes if sampler is self.sampler else EpisodeList.drawn(sampler, config.validate.episodes),
            )
            for name, sampler in selection.curves.items()
        }
        if distributed.rank() == 0:
            for left in out.glob("features-*"):  # by a validation that was killed
                shutil.rmtree(left)
        folder = out / f"features-{distributed.rank()}"
        self.options = EngineOptions(
            device, config.recipe.batch_size, config.workers, _CACHE_GB, folder, config.precision
        )

    def __call__(self, step: int, logger: Logger | None) -> dict[str, float]:
        loss = EpisodeLoss()
        (table,) = evaluate_lists(self.task, self.options, {self.shot: [self.episodes]}, loss=loss)[self.shot]
        if logger is not None:
            self._draw(step, logger)
        measured = scores(table.total[None], zero=False)
        numbers = measured.numbers()
        log.info("step %d: mIoU %.2f, FB-IoU %.2f on %s", step, *(100 * value for value in numbers.values()), self.on)
        if (mean := loss.read()) is not None:
            numbers["val/loss"] = mean
        for name, counts in table.further.items():
            numbers[f"miou_{name}"] = float(scores(counts.sum(0)[None], zero=False).miou[0])
        if self.task.base is not None:
            of_base = base_scores(table.base, len(self.task.base), zero=False)
            numbers |= {f"miou_{name}": values["miou"] for name, values in of_base.items()}
        of_classes = zip(table.classes, measured.per_class[0].tolist())
        numbers |= {f"iou/{name}": iou for name, iou in of_classes if not isnan(iou)}
        curves = {f"val/{name}_miou": self._miou(name, numbers["miou"]) for name in self.curves}
        if curves:
            log.info("step %d: %s", step, ", ".join(f"{name} {100 * miou:.2f}" for name, miou in curves.items()))
        numbers |= curves
        return {"score": numbers["miou"], **numbers}

    def _miou(self, curve: str, of_choice: float) -> float:
        """mIoU of a curve; of_choice: that of the episodes that choose, which may be the same."""
        task, episodes = self.curves[curve]
        if episodes is self.episodes:
            return of_choice
        (table,) = evaluate_lists(task, self.options, {self.shot: [episodes]})[self.shot]
        return scores(table.total[None], zero=False).numbers()["miou"]

    def _draw(self, step: int, logger: Logger) -> None:
        """The first four episodes, and how far the singular values have moved."""
        first = replace(self.episodes, specs=self.episodes.specs[:4])
        logger.image("episodes", draw_episodes(episode_pictures(self.task, self.options, first)), step)
        backbone = self.model.backbone
        logger.scalars({f"drift/{line.name}": line.drift_mean for line in svf.report(backbone)}, step)
        logger.scalars({f"spectrum_{key}": value for key, value in drift_by_size(backbone).items()}, step)
        for stage, values in drift_by_stage(backbone).items():
            logger.histogram(f"relative_drift/{stage}", values, step)
