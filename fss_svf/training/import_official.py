"""fss-svf import-official: an official checkpoint as a run folder of ours."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from fss_svf.backbones.weights import LoadReport, state_digest
from fss_svf.checkpoint import save_checkpoint
from fss_svf.config import ImportConfig, OfficialBaseLearner, PretrainConfig, TrainConfig, to_mapping
from fss_svf.data.dataset import Dataset
from fss_svf.data.fold import Fold
from fss_svf.data.index import Index
from fss_svf.errors import TrainingError, WeightsError
from fss_svf.evaluation.conditions import SELECTED_ON_NOVEL
from fss_svf.methods.bam import BAM
from fss_svf.model import restore_model
from fss_svf.official import read_base_learner, read_official
from fss_svf.provenance import write_run_folder
from fss_svf.registry import DATASETS
from fss_svf.training.data_seen import seen_in_training
from fss_svf.training.optim import make_optimizer

log = logging.getLogger(__name__)

# What the file itself decides.
_OF_THE_FILE = ("name", "width", "shot", "kshot_trans_dim", "base_learner", "base_classes")


def import_official(config: ImportConfig, out: Path) -> Path:
    """Write the checkpoint of step 0 into the run folder `out`. Raises WeightsError naming what does not fit."""
    if (out / "checkpoints").exists():
        raise TrainingError(f"target={config.target}: holds a run already; choose another folder")
    dataset: Dataset = DATASETS.build(config.dataset)
    index = dataset.split("train").index
    base = Fold(dataset.options, index.class_names, config.fold).base
    if isinstance(config.method, OfficialBaseLearner):
        _import_base_learner(config, index, base, out)
    else:
        _import_method(config, config.method.name, to_mapping(config.method), index, base, out)
    log.info("%s, fold %s of %s, in %s", config.source, config.fold, config.dataset.name, out)
    return out


def _import_method(
    config: ImportConfig, name: str, options: dict[str, Any], index: Index, base: Sequence[int], out: Path
) -> None:
    options = {k: v for k, v in options.items() if k not in _OF_THE_FILE}
    if "bins" in options:
        options["bins"] = tuple(options["bins"])
    found = read_official(
        config.source,
        name,
        config.backbone.name,
        config.shot,
        config.dataset.name,
        config.tuning.name,
        config.dilation,
        **options,
    )
    model = restore_model(found.method, found.backbone, found.tuning, found.state, found.what)
    if isinstance(model, BAM):
        _check_classes(config, model.base.classes, base)
    values = {f.name: getattr(config, f.name) for f in fields(TrainConfig)}
    run = TrainConfig(**{**values, "method": found.method, "backbone": found.backbone, "tuning": found.tuning})
    _write("train", run, config.source, model, model.backbone, index, base, out)


def _import_base_learner(config: ImportConfig, index: Index, base: Sequence[int], out: Path) -> None:
    backbone, model = read_base_learner(config.source, config.backbone.name, config.dataset.name, config.dilation)
    _check_classes(config, model.classes, base)
    values = {f.name: getattr(config, f.name) for f in fields(PretrainConfig) if f.name != "validate_every"}
    run = PretrainConfig(**{**values, "validate_every": config.validate.every, "backbone": backbone})
    _write("pretrain", run, config.source, model, model.backbone, index, base, out)


def _check_classes(config: ImportConfig, found: int, base: Sequence[int]) -> None:
    if found != len(base):
        raise WeightsError(
            f"{config.source}: {found} base classes, fold {config.fold} of {config.dataset.name} has {len(base)}"
        )


def _write(
    verb: str,
    run: TrainConfig | PretrainConfig,
    source: Path,
    model: nn.Module,
    backbone: nn.Module,
    index: Index,
    base: Sequence[int],
    out: Path,
) -> None:
    """The run folder that `verb` would have left behind at step 0 of these weights."""
    trained_on = seen_in_training(
        run, index, base, LoadReport(f"official {source.name}", digest=state_digest(backbone.state_dict()))
    )
    write_run_folder(out, run, trained_on)
    content = {
        "verb": verb,
        "config": to_mapping(run),
        "model": model.state_dict(),
        "optimizer": make_optimizer(model, backbone, run.recipe.optimizer).state_dict(),
        "step": 0,
        "best": -1.0,
        "trained_on": trained_on,
        # What the official code keeps is the best on the test fold, or of a base learner on its base classes.
        "selection": SELECTED_ON_NOVEL if verb == "train" else "best mIoU on the base classes",
    }
    save_checkpoint(out / "checkpoints" / "last.pt", content)
