"""fss-svf import-official: an official checkpoint as a run folder of ours."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path

import torch

from fss_svf.backbones.weights import LoadReport
from fss_svf.checkpoint import save_checkpoint
from fss_svf.config import ImportConfig, TrainConfig, to_mapping
from fss_svf.data.dataset import Dataset
from fss_svf.data.episodes import split_classes
from fss_svf.errors import TrainingError
from fss_svf.model import restore_model
from fss_svf.official import read_official
from fss_svf.provenance import write_run_folder
from fss_svf.registry import DATASETS
from fss_svf.training.loop import seen_in_training
from fss_svf.training.optim import make_optimizer

log = logging.getLogger(__name__)

# What the file itself decides.
_OF_THE_FILE = ("name", "width", "shot", "kshot_trans_dim", "base_learner", "base_classes")


def import_official(config: ImportConfig, out: Path) -> Path:
    """Write the checkpoint of step 0 into the run folder `out`. Raises WeightsError naming what does not fit."""
    if (out / "checkpoints").exists():
        raise TrainingError(f"target={config.target}: holds a run already; choose another folder")
    options = {k: v for k, v in to_mapping(config.method).items() if k not in _OF_THE_FILE}
    if "bins" in options:
        options["bins"] = tuple(options["bins"])
    found = read_official(
        config.source,
        config.method.name,
        config.backbone.name,
        config.shot,
        config.dataset.name,
        config.tuning.name,
        config.dilation,
        **options,
    )
    model = restore_model(found.method, found.backbone, found.tuning, found.state, found.what)
    dataset: Dataset = DATASETS.build(config.dataset)
    index = dataset.split("train").index
    values = {f.name: getattr(config, f.name) for f in fields(TrainConfig)}
    run = TrainConfig(**{**values, "method": found.method, "backbone": found.backbone, "tuning": found.tuning})
    base = split_classes(index, dataset.options, config.fold, "train")
    trained_on = seen_in_training(run, index, base, LoadReport(f"official {config.source.name}"))
    write_run_folder(out, run, trained_on)
    content = {
        "verb": "train",
        "config": to_mapping(run),
        "model": model.state_dict(),
        "optimizer": make_optimizer(model, model.backbone, run.recipe.optimizer).state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": None,
        "step": 0,
        "best": -1.0,
        "trained_on": trained_on,
    }
    save_checkpoint(out / "checkpoints" / "last.pt", content)
    log.info(
        "%s tensors of %s, fold %d of %s, in %s", len(found.state), config.source, config.fold, config.dataset.name, out
    )
    return out
