"""fss-svf evaluate: a protocol's mIoU and FB-IoU of a checkpoint, or of a method that needs no training."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from fss_svf import distributed
from fss_svf.config import EvaluateConfig, check_fold
from fss_svf.data.augment import EvalTransform
from fss_svf.data.dataset import Dataset
from fss_svf.data.episodes import split_classes
from fss_svf.data.synonyms import warn_of_twice
from fss_svf.errors import ConfigError, listing
from fss_svf.evaluation.base_classes import require_base_classes
from fss_svf.evaluation.conditions import require_conditions, require_shots, warn_of_stretch, warn_of_width
from fss_svf.evaluation.engine import Engine, Task
from fss_svf.evaluation.episode_table import episode_table, save_episode_table
from fss_svf.evaluation.pictures import pick, pictures_of
from fss_svf.evaluation.plan import make_plan
from fss_svf.evaluation.records import delete_records, has_records
from fss_svf.evaluation.result import data_choices, in_words, make_result, shares, warn_of_absent
from fss_svf.evaluation.runs import evaluate_lists
from fss_svf.evaluation.subject import base_classes, make_subject
from fss_svf.methods.method import check_way
from fss_svf.model import choose_device, place, refuse_leak
from fss_svf.provenance import write_json, write_run_folder
from fss_svf.registry import DATASETS
from fss_svf.reporting.gallery import save_gallery
from fss_svf.reporting.markdown import markdown_table
from fss_svf.reporting.pictures import draw_episodes, save_picture

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
    subject = make_subject(config)
    protocol = replace(config.protocol, seed=config.seed, runs=config.seeds)
    check_fold(subject.fold, subject.dataset)
    dataset: Dataset = DATASETS.build(subject.dataset)
    split = dataset.split("val")
    classes = split_classes(split.index, dataset.options, subject.fold, "val")
    known, synonyms = split.index.class_names, dataset.options.synonyms
    warn_of_twice(known, synonyms)
    # Without a checkpoint the weights themselves may have been trained on these classes.
    source = f"checkpoint={config.checkpoint}" if config.checkpoint else "backbone.weights"
    refuse_leak(subject.trained_on, map(split.index.class_name, classes), source, known, synonyms)
    check_way(type(subject.model), subject.way)
    require_shots(protocol, config.shots, subject.model, subject.way)
    require_base_classes(protocol, subject.model, subject.method)
    require_conditions(protocol, config.shots, subject.checkpoint)
    base = base_classes(subject, dataset, split.index, protocol)
    place(subject.model, device)
    if distributed.rank() == 0:
        if config.resume is None:
            _delete_earlier(out)
        write_run_folder(out, config, {"processes": distributed.world()})
    plan = make_plan(split.index, dataset.options, subject.fold, config.shots, protocol, config.episodes, subject.way)
    protocol = plan.protocol
    warn_of_stretch(protocol, split.index.sizes, subject.size)
    names = {c: split.index.class_name(c) for c in classes}
    data = {"index": split.index.hash, **data_choices(dataset, max(config.shots)), **plan.source}
    task = Task(
        subject.model,
        split,
        dataset.options.support_annotation,
        EvalTransform(subject.size, protocol.resize, protocol.pad),
        protocol,
        base,
    )
    engine = Engine(
        device,
        config.batch_size,
        config.workers,
        config.cache_gb,
        out / f"codes-{distributed.rank()}",
        config.precision,
    )
    evaluated = evaluate_lists(task, engine, plan.episodes, out)
    if distributed.rank() > 0:
        distributed.barrier()
        return []
    if evaluated.seconds:  # unless all was done before
        log.info("%s", shares(evaluated.seconds))
    results = []
    for shot, runs in evaluated.runs.items():
        folder = _folder(config, out, shot)
        tables = [episode_table(e, run.episodes, plan.classes) for e, run in zip(plan.episodes[shot], runs)]
        result = make_result(subject, plan, shot, runs, tables, names, data, config.precision)
        folder.mkdir(parents=True, exist_ok=True)
        # Before the result, so that where there is a result its episodes are there too.
        save_episode_table(folder / "episodes.csv", tables)
        write_json(folder / "result.json", result)
        if config.pictures:
            log.info("drawing episodes")
            chosen = pick(plan.episodes[shot][0], runs[0].episodes, config.pictures)
            for what, pictures in pictures_of(task, engine, chosen).items():
                if what == "gallery":
                    save_gallery(folder / "gallery", pictures, plan.episodes[shot][0].seed)
                else:
                    save_picture(folder / f"{what}.png", draw_episodes(pictures))
        warn_of_absent(result)
        log.info("%s", in_words(result))
        warn_of_width(result, protocol.half_width)
        results.append(result)
    delete_records(out)
    print(markdown_table(results))
    log.info("results in %s", out)
    distributed.barrier()
    return results


def _folder(config: EvaluateConfig, out: Path, shot: int) -> Path:
    return out if len(config.shots) == 1 else out / f"{shot}shot"


def _delete_earlier(out: Path) -> None:
    """Delete the results of an evaluation that this one replaces: of other shots, they would stay beside the new ones."""
    for folder in [out, *out.glob("*shot")]:
        for name in ("result.json", "episodes.csv", "episodes.png", "best.png", "worst.png"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "gallery", ignore_errors=True)
        if folder != out and not any(folder.iterdir()):
            folder.rmdir()


def _earlier(config: EvaluateConfig, out: Path) -> list[dict[str, Any]]:
    """The results of the run to resume, if it came to its end. What a killed one left of codes is deleted.

    Raises ConfigError where a run began that is not to be resumed.
    """
    if config.resume is None:
        if has_records(out):
            raise ConfigError(
                f"{out}: holds an evaluation that is not finished; go on with resume={out}, or choose another hydra.run.dir"
            )
        return []
    for left in out.glob("codes-*"):
        shutil.rmtree(left)
    paths = [_folder(config, out, shot) / "result.json" for shot in config.shots]
    # The files of finished work are deleted last.
    if has_records(out) or not all(path.exists() for path in paths):
        return []
    log.info("finished already, nothing to do: %s", listing(paths))
    return [json.loads(path.read_text()) for path in paths]
