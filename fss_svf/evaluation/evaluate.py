"""fss-svf evaluate: a protocol's mIoU and FB-IoU of a checkpoint, or of a method that needs no training."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import torch

from fss_svf import distributed
from fss_svf.checkpoint import load_checkpoint
from fss_svf.config import EvaluateConfig, Protocol, TrainConfig, check_fold, from_mapping, to_mapping
from fss_svf.data.augment import EvalTransform
from fss_svf.data.dataset import Dataset
from fss_svf.data.episodes import split_classes
from fss_svf.data.index import Index
from fss_svf.errors import ConfigError, listing
from fss_svf.evaluation.base_classes import require_base_classes
from fss_svf.evaluation.conditions import SELECTED_ON_NOVEL, require_conditions, require_shots, warn_of_width
from fss_svf.evaluation.counts import Counts
from fss_svf.evaluation.engine import Engine, Task
from fss_svf.evaluation.episode_table import EpisodeTable, episode_table, save_episode_table, total_counts
from fss_svf.evaluation.pictures import episode_pictures, pick
from fss_svf.evaluation.plan import Plan, make_plan
from fss_svf.evaluation.records import delete_records, has_records
from fss_svf.evaluation.runs import Run, evaluate_lists
from fss_svf.evaluation.statistics import LEVEL, RESAMPLES, deviation, interval, resampled
from fss_svf.methods.method import FewShotMethod, check_way
from fss_svf.model import build_model, choose_device, place, refuse_leak, restore_model, trainable_values
from fss_svf.provenance import write_json, write_run_folder
from fss_svf.registry import BACKBONES, DATASETS, METHODS, TUNINGS, Choice, Registry
from fss_svf.reporting.pictures import draw_episodes, save_picture
from fss_svf.reporting.table import markdown_table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a model, and where it comes from."""

    model: FewShotMethod
    dataset: Choice
    fold: int
    way: int
    size: int
    method: str
    backbone: str
    tuning: str
    weights: str  # what the backbone started from
    checkpoint: dict[str, Any] | None  # for result.json
    trained_on: Mapping[str, Any] | None


def evaluate(config: EvaluateConfig, out: Path) -> list[dict[str, Any]]:
    """Evaluate `config` in the folder `out`, one result a shot.

    Writes result.json, episodes.csv and pictures: into `out` for one shot, into out/1shot, out/5shot, ... for several.
    Several processes share the episodes; the first writes, and gives the results back.
    """
    earlier = distributed.broadcast(_earlier(config, out) if distributed.rank() == 0 else None)
    if earlier:
        return earlier
    subject = _from_checkpoint(config) if config.checkpoint else _from_config(config)
    protocol = replace(config.protocol, seed=config.seed, runs=config.seeds, size=subject.size)
    check_fold(subject.fold, subject.dataset)
    dataset: Dataset = DATASETS.build(subject.dataset)
    split = dataset.split("val")
    classes = split_classes(split.index, dataset.options, subject.fold, "val")
    refuse_leak(subject.trained_on, map(split.index.class_name, classes), f"checkpoint={config.checkpoint}")
    check_way(type(subject.model), subject.way)
    require_shots(protocol, config.shots, subject.model, subject.way)
    require_base_classes(protocol, subject.model, subject.method)
    require_conditions(protocol, config.shots, subject.checkpoint)
    base = _base_classes(subject, dataset, split.index, protocol)
    device = choose_device(config.device)
    place(subject.model, device)
    if distributed.rank() == 0:
        write_run_folder(out, config, {"processes": distributed.world()})
    plan = make_plan(split.index, dataset.options, subject.fold, config.shots, protocol, config.episodes, subject.way)
    protocol = plan.protocol
    names = {c: split.index.class_name(c) for c in classes}
    data = {"index": split.index.hash, **_data_choices(dataset, max(config.shots)), **plan.source}
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
        log.info("%s", _shares(evaluated.seconds))
    results = []
    for shot, runs in evaluated.runs.items():
        folder = _folder(config, out, shot)
        tables = [episode_table(e, run.episodes, plan.classes) for e, run in zip(plan.episodes[shot], runs)]
        result = _result(subject, plan, shot, runs, tables, names, data, config.precision)
        folder.mkdir(parents=True, exist_ok=True)
        # Before the result, so that where there is a result its episodes are there too.
        save_episode_table(folder / "episodes.csv", tables)
        write_json(folder / "result.json", result)
        if config.pictures:
            for what, episodes in pick(plan.episodes[shot][0], runs[0].episodes, config.pictures).items():
                save_picture(folder / f"{what}.png", draw_episodes(episode_pictures(task, engine, episodes)))
        _warn_of_absent(result)
        log.info("%s", _in_words(result))
        warn_of_width(result, protocol.precision)
        results.append(result)
    delete_records(out)
    print(markdown_table(results))
    log.info("results in %s", out)
    distributed.barrier()
    return results


def _folder(config: EvaluateConfig, out: Path, shot: int) -> Path:
    return out if len(config.shots) == 1 else out / f"{shot}shot"


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


def _from_checkpoint(config: EvaluateConfig) -> Subject:
    assert config.checkpoint is not None
    content = load_checkpoint(config.checkpoint, "train")
    trained = from_mapping(TrainConfig, content["config"])
    changeable: tuple[str, ...] = METHODS.entry(trained.method.name).build.evaluation_options  # type: ignore[attr-defined]
    for key, allowed in (("method", changeable), ("backbone", ())):
        others = set(getattr(config, key)) - set(allowed)
        if others:
            raise ConfigError(
                f"{key}: checkpoint={config.checkpoint} was trained with {key}={getattr(trained, key).name} and its own "
                f"options of it; leave {key}{'' if 'name' in others else '.' + min(others)} out"
            )
    method = _choose(METHODS, {**to_mapping(trained.method), **config.method})
    # Another dataset has other folds; whether its novel classes were seen is told by their names.
    if config.fold not in (None, trained.fold) and "name" not in config.dataset:
        raise ConfigError(
            f"fold={config.fold}: checkpoint={config.checkpoint} was trained on fold {trained.fold} and has seen the "
            f"novel classes of fold {config.fold}; leave fold out, or give a checkpoint of fold {config.fold}"
        )
    what = f"checkpoint={config.checkpoint}"
    model = restore_model(method, trained.backbone, trained.tuning, content["model"], what)
    return Subject(
        model=model,
        dataset=_dataset(config.dataset, trained.dataset),
        fold=trained.fold if config.fold is None else config.fold,
        way=config.way or trained.way,
        size=config.size or config.protocol.size or trained.recipe.tested_at,
        method=trained.method.name,
        backbone=trained.backbone.name,
        tuning=trained.tuning.name,
        weights=content["trained_on"]["backbone_weights"],
        checkpoint={
            "path": str(config.checkpoint),
            "step": content["step"],
            "way": trained.way,
            "shot": trained.shot,
            "recipe": trained.recipe.name,
            "seed": trained.seed,
            "options": {**_options(trained), **{f"method.{key}": value for key, value in config.method.items()}},
            "method_options_changed": dict(config.method),
            "selection": content.get("selection") or _selection_of_before(config.checkpoint),
        },
        trained_on=content["trained_on"],
    )


def _selection_of_before(checkpoint: Path) -> str:
    """Of a checkpoint that does not say: the best was that on the test fold itself, as in the papers: optimistic."""
    return SELECTED_ON_NOVEL if checkpoint.name == "best.pt" else "last step"


def _options(trained: TrainConfig) -> dict[str, Any]:
    """Every option of a training that may make it another one, by its key: of a method, tuning, backbone and recipe, and
    the classes it was not to see."""
    # Files and folders are other ones in every fold and on every machine; what a backbone started from is told apart.
    parts = {key: to_mapping(getattr(trained, key)) for key in ("method", "backbone", "tuning", "recipe")}
    left_out = {"tuning.cache", "tuning.execution", "backbone.weights", "method.base_learner", "recipe.name"}
    options = {key: value for key, value in _flat(parts).items() if key not in left_out}
    if trained.validate.held_out is not None:
        options["validate.held_out"] = to_mapping(trained.validate.held_out)
    return options


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, its keys joined by dots."""
    found = {}
    for key, value in tree.items():
        found.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return found


def _from_config(config: EvaluateConfig) -> Subject:
    """A method without a trained parameter, on a backbone as it is."""
    for key in ("dataset", "method", "backbone"):
        if "name" not in getattr(config, key):
            raise ConfigError(f"evaluate: give checkpoint=PATH, or {key}=NAME (with dataset, method, backbone, size)")
    size = config.size or config.protocol.size
    if size is None:
        raise ConfigError("size: without a checkpoint evaluate needs the input size in pixels, such as size=473")
    if METHODS.entry(config.method["name"]).build.trainable:  # type: ignore[attr-defined]
        raise ConfigError(
            f"method={config.method['name']}: has parameters to train; give checkpoint=PATH of a trained one"
        )
    method, backbone = _choose(METHODS, config.method), _choose(BACKBONES, config.backbone)
    torch.manual_seed(config.seed)  # of random weights, the same in each job of a sweep
    frozen = Choice("frozen", TUNINGS.entry("frozen").options())
    model, report = build_model(method, backbone, frozen)
    log.info("%s", report)
    return Subject(
        model=model,
        dataset=_choose(DATASETS, config.dataset),
        fold=config.fold or 0,
        way=config.way or 1,
        size=size,
        method=method.name,
        backbone=backbone.name,
        tuning="frozen",
        weights=report.label,
        checkpoint=None,
        trained_on=report.trained_on,
    )


def _base_classes(subject: Subject, dataset: Dataset, index: Index, protocol: Protocol) -> tuple[int, ...] | None:
    """The classes that the model's base learner knows, where they are this dataset's base classes, told by their names.

    Raises ConfigError where they are not and the protocol needs them.
    """
    if not subject.model.segments_base:
        return None
    assert subject.trained_on is not None
    base = split_classes(index, dataset.options, subject.fold, "train")
    same_run = [subject.trained_on[key] for key in ("dataset", "fold")] == [subject.dataset.name, subject.fold]
    if not same_run or not {index.class_name(c) for c in base} <= set(subject.trained_on["classes"]):
        what = f"dataset={subject.dataset.name}, fold={subject.fold}: its base classes are not those that the base learner "
        what += "of the checkpoint segments"
        if protocol.novel_threshold is not None:
            raise ConfigError(f"{what}; protocol={protocol.name} needs the dataset, fold and classes of its training")
        log.warning("%s: they are not measured", what)
        return None
    return base


def _choose(registry: Registry, values: Mapping[str, Any]) -> Choice:
    options = {key: value for key, value in values.items() if key != "name"}
    name = str(values["name"])
    return Choice(name, from_mapping(registry.entry(name).options, options, registry.kind))


def _dataset(asked: Mapping[str, Any], trained: Choice) -> Choice:
    """The dataset asked for; or the checkpoint's, with the options that are not null replaced."""
    if "name" in asked:
        return _choose(DATASETS, asked)
    changed = {key: value for key, value in asked.items() if value is not None}
    if "root" in changed and "prepared" not in changed:
        changed["prepared"] = f"{changed['root']}/prepared"
    return _choose(DATASETS, {**to_mapping(trained), **changed})


def _result(
    subject: Subject,
    plan: Plan,
    shot: int,
    runs: list[Run],
    tables: list[EpisodeTable],
    names: Mapping[int, str],
    data: Mapping[str, Any],
    precision: str,
) -> dict[str, Any]:
    """result.json, as docs/results.md says: every number a fraction; means over runs, whose own stand in `runs`."""
    protocol = plan.protocol
    zero = plan.classes if protocol.never_drawn == "zero" else ()
    each = [run.counts.per_class(zero) for run in runs]
    per_class: dict[str, float | None] = {}
    for c, name in names.items():
        values = [iou[c] for iou in each if c in iou]
        per_class[name] = mean(values) if values else None
    scores = [_scores(run.counts, zero) for run in runs]
    also = {name: _mean([_scores(run.counts_of(name), zero) for run in runs]) for name in runs[0].others}
    if runs[0].base is not None:
        base = [run.base.scores(plan.classes, protocol.never_drawn == "zero") for run in runs if run.base is not None]
        also |= {name: _mean([scores[name] for scores in base]) for name in base[0]}
    resamples = resampled(tables, protocol.never_drawn == "zero")
    return {
        **_mean(scores),
        "std": {key: deviation([score[key] for score in scores]) for key in ("miou", "fb_iou")},
        "interval": {
            "level": LEVEL,
            "resamples": RESAMPLES,
            "miou": interval(resamples.miou),
            "fb_iou": interval(resamples.fb_iou),
        },
        "per_class": per_class,
        "per_class_counts": total_counts(tables),
        "fold": subject.fold,
        "way": plan.way,
        "shot": shot,
        "method": subject.method,
        "backbone": subject.backbone,
        "tuning": subject.tuning,
        "dataset": subject.dataset.name,
        "protocol": to_mapping(protocol),
        "protocol_hash": protocol.hash(size=subject.size, data=data, **_unless("float32", precision=precision)),
        "size": subject.size,
        "precision": precision,
        "num_episodes": protocol.episodes * protocol.runs,
        "seeds": [protocol.seed + i for i in range(protocol.runs)],
        "episodes_per_class": {name: sum(int(r.counts.episodes[c]) for r in runs) for c, name in names.items()},
        "also": also,
        "runs": scores,
        "backbone_weights": subject.weights,
        "trainable_backbone_values": trainable_values(subject.model.backbone),
        "checkpoint": subject.checkpoint,
        "data": data,
        "classes_left_out": [names[c] for c in plan.left_out],
    }


def _unless(usual: str, **value: str) -> dict[str, str]:
    """Nothing where the value is the usual one, so that results of before it was told keep their hash."""
    return {} if usual in value.values() else value


def _shares(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values()) or 1.0
    return "time: " + ", ".join(f"{what} {100 * value / total:.0f}%" for what, value in seconds.items())


def _scores(counts: Counts, zero: Iterable[int]) -> dict[str, float]:
    return {"miou": counts.miou(zero), "fb_iou": counts.fb_iou()}


def _mean(scores: list[dict[str, float]]) -> dict[str, float]:
    return {key: mean(score[key] for score in scores) for key in scores[0]}


def _data_choices(dataset: Dataset, largest_shot: int) -> dict[str, Any]:
    """The dataset's options that decide what is measured; the same for every fold."""
    keys = ("class_partition", "folds", "min_area", "mask_mode", "support_annotation", "too_few_images")
    found = {key: getattr(dataset.options, key) for key in keys if hasattr(dataset.options, key)}
    # Which classes are left out depends on the largest shot.
    return {**found, "largest_shot": largest_shot} if found["too_few_images"] == "skip" else found


def _in_words(result: Mapping[str, Any]) -> str:
    """The numbers in percent with how sure they are, as one line."""
    seeds, episodes = len(result["seeds"]), result["num_episodes"]
    over = f"{episodes:,} episodes" if seeds == 1 else f"{seeds} seeds of {episodes // seeds:,} episodes"
    found = []
    for key, name in (("miou", "mIoU"), ("fb_iou", "FB-IoU")):
        low, high = result["interval"][key]
        spread = "" if seeds == 1 else f", sd over seeds {100 * result['std'][key]:.1f}"
        found.append(
            f"{name} {100 * result[key]:.1f} ({result['interval']['level']:.0%} interval {100 * low:.1f} to "
            f"{100 * high:.1f}{spread})"
        )
    return f"{result['shot']}-shot: {', '.join(found)}, over {over}"


def _warn_of_absent(result: Mapping[str, Any]) -> None:
    absent = [name for name, value in result["per_class"].items() if value is None]
    if absent:
        log.warning(
            "%d-shot: %d of %d classes were not measured and are not in the mean: %s",
            result["shot"],
            len(absent),
            len(result["per_class"]),
            ", ".join(absent),
        )
