"""fss-svf evaluate: a protocol's mIoU and FB-IoU of a checkpoint, or of a method that needs no training."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fss_svf import distributed
from fss_svf.config import EvaluateConfig
from fss_svf.data.dataset import Dataset
from fss_svf.data.fold import Fold
from fss_svf.data.manifest import EpisodeList
from fss_svf.data.synonyms import warn_of_twice
from fss_svf.errors import ConfigError, listing
from fss_svf.evaluation.conditions import warn_of_width
from fss_svf.evaluation.groups import ListKey
from fss_svf.evaluation.pictures import pick, pick_exchanged, pictures_of
from fss_svf.evaluation.plan import make_plan
from fss_svf.evaluation.prepare_task import check_subject, make_task
from fss_svf.evaluation.records import delete_records, has_records
from fss_svf.evaluation.reliance import (
    measure_reliance,
    reliance_in_words,
    require_one_way,
    save_wrong_episodes,
    wrong_lists,
)
from fss_svf.evaluation.result import data_source, in_words, make_result, save_result, shares, warn_of_absent
from fss_svf.evaluation.runs import evaluate_lists
from fss_svf.evaluation.subject import make_subject, require_tested
from fss_svf.evaluation.task import EngineOptions, EvaluationTask
from fss_svf.evaluation.timer import Timer
from fss_svf.model import choose_device, place
from fss_svf.packed import chosen
from fss_svf.provenance import write_run_folder
from fss_svf.registry import DATASETS
from fss_svf.reporting.gallery import save_gallery
from fss_svf.reporting.markdown import markdown_table
from fss_svf.reporting.pictures import draw_episodes, draw_exchanged, save_picture

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig, out: Path) -> list[dict[str, Any]]:
    """Evaluate `config` in the folder `out`, one result a shot.

    Writes result.json, episodes.csv and pictures: into `out` for one shot, into out/1shot, out/5shot, ... for several.
    Several processes share the episodes; the first writes, and gives the results back.
    """
    earlier = distributed.broadcast(_earlier(config, out) if distributed.rank() == 0 else None)
    if earlier:
        return earlier
    device = choose_device(config.device)
    model, subject = make_subject(config)
    protocol = replace(config.protocol, seed=config.seed, runs=config.seeds)
    # Without a checkpoint the weights themselves may have been trained on these classes.
    trained = chosen(config.checkpoint, config.model)
    source = "backbone.weights" if trained is None else trained[1]
    require_tested(subject, source)
    dataset: Dataset = DATASETS.build(subject.dataset)
    split = dataset.split("val")
    fold = Fold(dataset.options, split.index.class_names, subject.fold)
    warn_of_twice(fold.class_names, dataset.options.synonyms)
    subject, base = check_subject(model, subject, fold, protocol, config.shots, source)
    place(model, device)
    if config.reliance:
        require_one_way(subject.way)
    plan = make_plan(split.index, fold, config.shots, protocol, config.episodes, subject.way, base is not None)
    wrong = wrong_lists(plan, fold) if config.reliance else {}
    lists: dict[ListKey, list[EpisodeList]] = dict(plan.episodes.items())
    lists.update(wrong)
    if distributed.rank() == 0:
        if config.resume is None:
            _delete_earlier(out)
        write_run_folder(out, config, {"processes": distributed.world()})
    task, options = make_task(model, subject, split, fold, plan, base), _options(config, device, out)
    timer = Timer(device)
    try:
        of_lists = evaluate_lists(task, options, lists, out, timer)
    except KeyboardInterrupt:
        if has_records(out):
            log.info("what is finished is kept; go on with resume=%s", out)
        raise
    if distributed.rank() > 0:
        distributed.barrier()
        return []
    if seconds := timer.seconds():  # unless all was done before
        log.info("%s", shares(seconds))
    results, data = [], data_source(dataset, plan)
    for shot in plan.episodes:
        tables, folder = of_lists[shot], _folder(config, out, shot)
        reliance = measure_reliance(shot, tables, wrong, of_lists, fold.base) if wrong else None
        result = make_result(subject, plan, shot, tables, data, options, reliance)
        if wrong:
            save_wrong_episodes(folder / "reliance.csv", shot, wrong, of_lists)
        save_result(folder, result, tables)
        if config.pictures:
            _draw(folder, task, options, pick(plan.episodes[shot][0], tables[0], config.pictures))
            if wrong:
                exchanged = pick_exchanged(plan.episodes[shot][0], wrong[shot, "in_query"][0], config.pictures)
                if exchanged["right"].specs:
                    save_picture(folder / "reliance.png", draw_exchanged(**pictures_of(task, options, exchanged)))
        warn_of_absent(result)
        log.info("%s", in_words(result))
        if reliance is not None:
            log.info("%d-shot: %s", shot, reliance_in_words(reliance, result["interval"]["level"]))
        warn_of_width(result, protocol.half_width)
        results.append(result)
    delete_records(out)
    print(markdown_table(results))
    log.info("results in %s", out)
    distributed.barrier()
    return results


def _options(config: EvaluateConfig, device: torch.device, out: Path) -> EngineOptions:
    folder = out / f"features-{distributed.rank()}"
    return EngineOptions(
        device, config.batch_size, config.workers, config.cache_gb, folder, config.precision, config.features_dtype
    )


def _draw(folder: Path, task: EvaluationTask, options: EngineOptions, chosen: Mapping[str, EpisodeList]) -> None:
    """Pictures of the chosen episodes; the gallery in a folder of its own."""
    log.info("drawing episodes")
    for what, pictures in pictures_of(task, options, chosen).items():
        if what == "gallery":
            save_gallery(folder / "gallery", pictures, chosen[what].seed)
        else:
            save_picture(folder / f"{what}.png", draw_episodes(pictures))


def _folder(config: EvaluateConfig, out: Path, shot: int) -> Path:
    return out if len(config.shots) == 1 else out / f"{shot}shot"


def _delete_earlier(out: Path) -> None:
    """Delete the results of an evaluation that this one replaces: of other shots, they would stay beside the new ones."""
    for folder in [out, *out.glob("*shot")]:
        for name in (
            "result.json",
            "episodes.csv",
            "reliance.csv",
            "episodes.png",
            "best.png",
            "worst.png",
            "reliance.png",
        ):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "gallery", ignore_errors=True)
        if folder != out and not any(folder.iterdir()):
            folder.rmdir()


def _earlier(config: EvaluateConfig, out: Path) -> list[dict[str, Any]]:
    """The results of the run to resume, if it came to its end. What a killed one left of features is deleted.

    Raises ConfigError where a run began that is not to be resumed.
    """
    if config.resume is None:
        if has_records(out):
            raise ConfigError(
                f"{out}: holds an evaluation that is not finished; go on with resume={out}, or choose another hydra.run.dir"
            )
        return []
    for left in out.glob("features-*"):
        shutil.rmtree(left)
    paths = [_folder(config, out, shot) / "result.json" for shot in config.shots]
    # The files of finished work are deleted last.
    if has_records(out) or not all(path.exists() for path in paths):
        return []
    log.info("finished already, nothing to do: %s", listing(paths))
    return [json.loads(path.read_text()) for path in paths]
