"""Hours of trainings on a device that is named, before any ran there: their operations over what the device sustains."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

import yaml

from fss_svf.config import PretrainConfig, TrainConfig
from fss_svf.data import coco, pascal
from fss_svf.data.coco import CocoOptions
from fss_svf.data.dataset import Split
from fss_svf.data.fold import Fold
from fss_svf.data.pascal import PascalOptions
from fss_svf.errors import ConfigError, DataError, did_you_mean
from fss_svf.model import without_weights
from fss_svf.registry import DATASETS
from fss_svf.reproduction.job import Job
from fss_svf.reproduction.operations import operations
from fss_svf.training.loop import total_steps
from fss_svf.training.selection import make_selection

log = logging.getLogger(__name__)

Run = PretrainConfig | TrainConfig
# Train and val of a dataset.
Splits = tuple[Split, Split]
# TFLOP/s by precision.
Rates = Mapping[str, float]


@cache
def device_models() -> Mapping[str, Rates]:
    """The content of device_models.yaml, by device."""
    text = files("fss_svf.reproduction").joinpath("device_models.yaml").read_text(encoding="utf-8")
    rates: Mapping[str, Rates] = yaml.safe_load(text)
    return rates


def rates_of(device_model: str) -> Rates:
    """What a device of device_models.yaml sustains. Raises ConfigError for a device that is not in it."""
    devices = device_models()
    if device_model not in devices:
        hint = did_you_mean(device_model, devices)
        raise ConfigError(f"device_model={device_model}: not in the table{hint}; there are {', '.join(devices)}")
    return devices[device_model]


def estimated_hours(jobs: Sequence[Job], device_model: str) -> dict[Job, float]:
    """Hours of each training and base learner on one such device: the arithmetic of its steps alone.

    Left out are evaluations, trainings whose number of images is not known (`training_steps`), and models that cannot be
    counted. Raises ConfigError for a device that is not in the table, and for a precision that it does not have there.
    """
    rates, opened, counted = rates_of(device_model), dict[str, Splits | None](), dict[str, float | None]()
    found = {}
    for job in jobs:
        run = job.config
        if not isinstance(run, Run):
            continue
        if run.precision not in rates:
            raise ConfigError(
                f"device_model={device_model}: no rate for precision={run.precision}; it has {', '.join(rates)}: add for "
                f"example '-- precision={list(rates)[-1]}'"
            )
        data = str(run.dataset)
        if data not in opened:
            opened[data] = _open(run)
        steps = training_steps(run, opened[data])
        if steps is None:
            continue
        if (model := _model(run)) not in counted:
            counted[model] = _operations(job.group, run)
        if (of_item := counted[model]) is not None:
            found[job] = steps * run.recipe.batch_size * of_item / (rates[run.precision] * 1e12) / 3600
    return found


def training_steps(run: Run, splits: Splits | None) -> int | None:
    """The steps of a training. splits: None where the data are not prepared.

    None where its images are then not known: a paper prints their number for the complete Pascal-5i and COCO-20i.
    """
    recipe = run.recipe
    if splits is None:
        epoch = _of_papers(run)
        if epoch is None:
            return recipe.max_steps
    else:
        train, val = (split.index for split in splits)
        fold = Fold(run.dataset.options, train.class_names, run.fold)
        epoch = len(
            fold.sampler(train, "train", 0, run.seed, "shuffled_epochs")
            if isinstance(run, PretrainConfig)
            else make_selection(run, fold, train, val).training
        )
    return total_steps(recipe.epochs, recipe.max_steps, epoch, recipe.batch_size)


def _open(run: Run) -> Splits | None:
    try:
        dataset = DATASETS.build(run.dataset)
        return dataset.split("train"), dataset.split("val")
    except DataError:
        return None


def _of_papers(run: Run) -> int | None:
    """The training images of the fold in the papers' lists; None of other data."""
    options, fold = run.dataset.options, run.fold
    if fold == "all" or options.min_area != 2048 or options.train_fraction < 1:
        return None
    if isinstance(options, PascalOptions) and (options.class_partition, options.train_list) == ("contiguous", None):
        return pascal.PAPERS["train", options.filter_novel][fold]
    if isinstance(options, CocoOptions) and options.class_partition == "mod4" and options.filter_novel:
        name = options.train.annotations.rpartition("/")[2].removesuffix(".json")
        return coco.PAPERS[name][2][fold] if name == "instances_train2014" else None
    return None


def _model(run: Run) -> str:
    """What its operations depend on; rows and cells share much."""
    parts = [run.backbone, run.method, run.tuning] if isinstance(run, TrainConfig) else [run.backbone]
    shape = (run.shot, run.way) if isinstance(run, TrainConfig) else ()
    return str((*map(without_weights, parts), *shape, run.recipe.size, run.recompute))


def _operations(group: str, run: Run) -> float | None:
    try:
        return operations(run)
    except RuntimeError as error:  # of a model of one's own
        log.warning("%s: its operations cannot be counted without data: %s", group, str(error).splitlines()[0])
        return None
