"""What an evaluation measures: a checkpoint's model, or a method that needs no training, and on which dataset."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fss_svf.conf_files import plain_values
from fss_svf.config import EvaluateConfig, FoldNumber, Protocol, TrainConfig, check_fold, from_mapping, to_mapping
from fss_svf.data.fold import Fold
from fss_svf.errors import ConfigError
from fss_svf.evaluation.conditions import SELECTED_ON_NOVEL, warn_of_drawings
from fss_svf.evaluation.untrained import choose, untrained_model
from fss_svf.evaluation.ways import ChosenRule, choose_rule
from fss_svf.methods.base_classes import BaseClassMethod
from fss_svf.methods.method import FewShotMethod, method_class
from fss_svf.model import restore_model, trainable_values
from fss_svf.packed import chosen, load_trained
from fss_svf.registry import DATASETS, METHODS, Choice

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """Which model is evaluated, and where it comes from: what a result says of it.

    way           classes an episode; None: all of the fold (protocol.classes=all)
    way_rule      of choose_rule: None for one way
    weights       what the backbone started from, and weights_hash: of their content, None for random ones
    trainable     values of the backbone that trained
    checkpoint    for result.json
    classes_seen  tested classes that the model was trained on in another dataset
    options       of a method without training, or of a model of fss_svf.build_model: those that are not as in their YAML
    """

    dataset: Choice
    fold: FoldNumber
    way: int | None
    way_rule: ChosenRule | None
    size: int
    method: str
    backbone: str
    tuning: str
    weights: str
    weights_hash: str | None
    trainable: int
    checkpoint: dict[str, Any] | None
    trained_on: Mapping[str, Any] | None
    classes_seen: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def make_subject(config: EvaluateConfig) -> tuple[FewShotMethod, Subject]:
    """The model of a checkpoint, a packed one, or a method without a trained parameter. Raises ConfigError, WeightsError."""
    trained = chosen(config.checkpoint, config.model)
    return _from_config(config) if trained is None else _from_checkpoint(config, *trained)


def _from_checkpoint(config: EvaluateConfig, path: Path, what: str) -> tuple[FewShotMethod, Subject]:
    """The model of a checkpoint or a packed one, at `path`; messages call it `what`."""
    content = load_trained(path)
    trained = from_mapping(TrainConfig, content["config"])
    trained_class = method_class(trained.method.name)
    changeable = trained_class.evaluation_options if issubclass(trained_class, BaseClassMethod) else ()
    for key, allowed in (("method", changeable), ("backbone", ("weights",))):
        others = set(getattr(config, key)) - set(allowed)
        if others:
            raise ConfigError(
                f"{key}: {what} was trained with {key}={getattr(trained, key).name} and its own "
                f"options of it; leave {key}{'' if 'name' in others else '.' + min(others)} out"
            )
    method = choose(METHODS, {**to_mapping(trained.method), **config.method})
    # Another dataset has other folds; whether its novel classes were seen is told by their names.
    if config.fold not in (None, trained.fold) and trained.fold != "all" and "name" not in config.dataset:
        raise ConfigError(
            f"fold={config.fold}: {what} was trained on fold {trained.fold} and has seen the "
            f"novel classes of fold {config.fold}; leave fold out, or give a checkpoint of fold {config.fold}"
        )
    way = _way(config, trained.way)
    dataset = _dataset(config.dataset, trained.dataset)
    warn_of_drawings(what, trained.dataset.name, dataset.name)
    base, weights = content.get("base"), config.backbone.get("weights")
    model = restore_model(method, trained.backbone, trained.tuning, content["model"], what, base, weights)
    return model, Subject(
        dataset=dataset,
        fold=_fold(config, trained, dataset),
        way=way,
        way_rule=choose_rule(model, way, config.way_rule),
        size=config.size or config.protocol.size or trained.recipe.tested_at,
        method=trained.method.name,
        backbone=trained.backbone.name,
        tuning=trained.tuning.name,
        weights=content["trained_on"]["backbone_weights"],
        weights_hash=content["trained_on"].get("weights_hash"),
        trainable=trainable_values(model.backbone),
        checkpoint={
            "path": config.model or str(path),
            "step": content["step"],
            "way": trained.way,
            "shot": trained.shot,
            "recipe": trained.recipe.name,
            "seed": trained.seed,
            "options": {
                **_options(trained),
                **_origins(content["trained_on"]),
                **{f"method.{key}": value for key, value in config.method.items()},
            },
            "method_options_changed": dict(config.method),
            "selection": content.get("selection") or _selection_of_before(path, content["step"]),
        },
        trained_on=content["trained_on"],
    )


def _way(config: EvaluateConfig, usual: int) -> int | None:
    return None if config.protocol.classes == "all" else config.way or usual


def _fold(config: EvaluateConfig, trained: TrainConfig, dataset: Choice) -> FoldNumber:
    """The fold in the config, the only one of the dataset, or that of the training."""
    if config.fold is not None or dataset.options.num_folds == 1:
        return config.fold or 0
    return trained.fold


def require_tested(subject: Subject, source: str) -> None:
    """Raise ConfigError where no fold is tested: after a training of fold=all, or for a number that is none."""
    dataset, trained_on = subject.dataset.name, subject.trained_on
    if subject.fold == "all" and trained_on is not None:
        same = dataset == trained_on["dataset"]
        other = "another dataset by dataset=NAME" if same else f"fold=0 or another of dataset={dataset}"
        raise ConfigError(
            f"fold: {source} was trained on every class of {trained_on['dataset']} (fold=all); choose {other}"
        )
    check_fold(subject.fold, subject.dataset)


def _selection_of_before(checkpoint: Path, step: int) -> str:
    """Of a checkpoint that does not say: the best was that on the test fold itself, as in the papers: optimistic.

    At step 0 it is an imported official one, which was chosen like that too.
    """
    return SELECTED_ON_NOVEL if checkpoint.name == "best.pt" or step == 0 else "last step"


def _options(trained: TrainConfig) -> dict[str, Any]:
    """Every option of a training that may make it another one, by its key: of a method, tuning, backbone and recipe, and
    the classes it was not to see."""
    # Files and folders are other ones in every fold and on every machine; their content is told by its hash.
    parts = {key: to_mapping(getattr(trained, key)) for key in ("method", "backbone", "tuning", "recipe")}
    left_out = {"tuning.cache", "tuning.execution", "backbone.weights", "method.base_learner", "recipe.name"}
    options = {key: value for key, value in _flat(parts).items() if key not in left_out}
    options |= {
        key: value for key in ("precision", "overfit") if (value := getattr(trained, key)) not in ("float32", None)
    }
    options |= _data_options(trained.dataset)
    if trained.validate.held_out is not None:
        options["validate.held_out"] = to_mapping(trained.validate.held_out)
    return options


def _origins(trained_on: Mapping[str, Any]) -> dict[str, Any]:
    """What the names of files leave out: the hash of the training data, and how the checkpoints it began with came about."""
    options: dict[str, Any] = {"dataset.index": trained_on.get("index")}
    for key, what in (("backbone.weights", "weights_origin"), ("method.base_learner", "base_learner")):
        came_about = trained_on.get(what) or {}
        options |= {f"{key}.{name}": value for name, value in came_about.items() if name != "classes"}
    return options


def _data_options(dataset: Choice) -> dict[str, Any]:
    """What of a dataset decides the images and masks of a training; of a list of images the file's name."""
    keys = (
        "filter_novel",
        "min_area",
        "support_annotation",
        "class_partition",
        "mask_mode",
        "allow_missing",
        "train_list",
    )
    found = {f"dataset.{key}": getattr(dataset.options, key) for key in keys if hasattr(dataset.options, key)}
    if found.get("dataset.train_list") is not None:
        found["dataset.train_list"] = Path(found["dataset.train_list"]).name
    if dataset.options.train_fraction < 1:
        found["dataset.train_fraction"] = dataset.options.train_fraction
    return {"dataset.name": dataset.name, **found}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, its keys joined by dots."""
    found = {}
    for key, value in tree.items():
        found.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return found


def _from_config(config: EvaluateConfig) -> tuple[FewShotMethod, Subject]:
    """A method without a trained parameter, on a backbone as it is."""
    size = config.size or config.protocol.size
    assert size is not None  # as the config requires
    # In each job of a sweep the same random weights.
    model, report, method, backbone = untrained_model(config.method, config.backbone, config.seed)
    return model, Subject(
        dataset=choose(DATASETS, config.dataset),
        fold=config.fold or 0,
        way=_way(config, 1),
        way_rule=choose_rule(model, _way(config, 1), config.way_rule),
        size=size,
        method=method.name,
        backbone=backbone.name,
        tuning="frozen",
        weights=report.label,
        weights_hash=report.digest,
        trainable=trainable_values(model.backbone),
        checkpoint=None,
        trained_on=report.trained_on,
        options=changed_options({"method": method, "backbone": backbone}),
    )


def changed_options(choices: Mapping[str, Choice]) -> dict[str, Any]:
    """The options of the components, by group, that are not as in conf/GROUP/NAME.yaml; weights are told by their hash."""
    found = {}
    for group, choice in choices.items():
        usual, options = plain_values(group, choice.name, resolve=False) or {}, to_mapping(choice)
        keys = [key for key in usual if key != "weights" and options.get(key) != usual[key]]
        found.update({f"{group}.{key}": options.get(key) for key in keys})
    return found


def base_classes(model: FewShotMethod, subject: Subject, fold: Fold, protocol: Protocol) -> tuple[int, ...] | None:
    """The classes that the model's base learner knows, where they are this dataset's base classes, told by their names.

    None where the model has no base learner, or does not say which classes that knows. Raises ConfigError where they are not
    this dataset's, or not known, and the protocol needs them.
    """
    if not isinstance(model, BaseClassMethod):
        return None
    needed = protocol.novel_threshold is not None or protocol.classes == "all"
    if subject.trained_on is None:
        if needed:
            raise ConfigError(
                f"protocol={protocol.name}: the model does not say which base classes it knows; use load_model"
            )
        return None
    names = fold.names(fold.base)
    # Its channels are the base learner's classes in order; a checkpoint of before that was kept has them as a set alone.
    channels = (subject.trained_on.get("base_learner") or {}).get("classes", names)[: len(names)]
    same_run = [subject.trained_on[key] for key in ("dataset", "fold")] == [subject.dataset.name, subject.fold]
    if not same_run or channels != names or not set(names) <= set(subject.trained_on["classes"]):
        what = f"dataset={subject.dataset.name}, fold={subject.fold}: its base classes are not those that the base learner "
        what += "of the checkpoint segments"
        if needed:
            raise ConfigError(f"{what}; protocol={protocol.name} needs the dataset, fold and classes of its training")
        log.warning("%s: they are not measured", what)
        return None
    return fold.base


def _dataset(asked: Mapping[str, Any], trained: Choice) -> Choice:
    """The dataset asked for; or the checkpoint's, with the options that are not null replaced."""
    if "name" in asked:
        return choose(DATASETS, asked)
    changed = {key: value for key, value in asked.items() if value is not None}
    if "root" in changed and "prepared" not in changed:
        changed["prepared"] = f"{changed['root']}/prepared"
    return choose(DATASETS, {**to_mapping(trained), **changed})
