"""train: what `fss-svf train` does, from Python."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from fss_svf.api.choosing import Named, compose
from fss_svf.api.data import LoadedFold
from fss_svf.api.models import load_model
from fss_svf.config import Protocol, TrainConfig, from_mapping, to_mapping
from fss_svf.errors import ConfigError, FssError
from fss_svf.lock import locked
from fss_svf.methods.method import FewShotMethod
from fss_svf.resume import go_on, holds, recorded
from fss_svf.run_folder import claimed, delete_unbegun, note_missing
from fss_svf.training.train import train as run

log = logging.getLogger(__name__)


def train(
    method: Named,
    fold: LoadedFold,
    *,
    backbone: Named | None = None,
    tuning: Named | None = None,
    recipe: Named | None = None,
    protocol: Named | Protocol | None = None,
    experiment: str | None = None,
    out: str | Path | None = None,
    resume: Literal["auto"] | None = None,
    **options: Any,
) -> FewShotMethod:
    """Meta-train a method on the base classes of a fold; the model of the last step, in eval mode.

    The same options give the same weights as `fss-svf train`, in a run folder that every verb takes. Its
    checkpoints/best.pt has those of the best validation. One process trains; it sets PyTorch's global seed.

    method, backbone, tuning, recipe, protocol
                a name, or a mapping of options, with `name` where it is another than the default; None: the default, of
                conf/train.yaml or of the experiment
    experiment  a name of conf/experiment/
    out         the run folder; None: a new one, outputs/train/NAME/STAMP, which is logged
    resume      auto: go on with the run of these options in `out`; a finished one is only loaded
    options     further keys of conf/train.yaml: shot=5, seed=1, device="cuda", validate={"every": 100}

    Raises ConfigError, DataError, WeightsError, TrainingError.

    >>> tiny = {"name": "tiny", "width": 8}
    >>> short = {"name": "toy", "size": 65, "max_steps": 2}
    >>> model = fss_svf.train("panet", fold, backbone=tiny, recipe=short, validate={"episodes": 4}, workers=0)
    >>> sum(values.numel() for values in model.parameters() if values.requires_grad)  # singular values
    280
    """
    if "dataset" in options:
        raise ConfigError("dataset: is that of the fold; give its options to load_dataset")
    data = fold.data
    dataset = {**to_mapping(data.choice), "name": data.name}
    groups = {"method": method, "dataset": dataset, "backbone": backbone, "tuning": tuning, "recipe": recipe}
    if "device" in options:
        options["device"] = str(options["device"])
    values = compose(
        "train", {**groups, "protocol": protocol, "experiment": experiment}, {**options, "fold": fold.fold.number}
    )
    config = from_mapping(TrainConfig, values)
    if resume not in (None, "auto") or (resume and out is None):
        raise ConfigError(f"resume={resume}: expected auto, with out=FOLDER of the run to go on with")
    if out is None:
        folder = _new_folder(config.name)
    else:
        folder = Path(out).expanduser().absolute()
        note_missing(folder)
    try:
        with locked(folder):
            _refuse_other(folder, resume)
            holds(config, folder, "give the options of that run, or choose another out=FOLDER")
            start = go_on(config, folder)
            if start.score is None:
                run(start.config, folder)
    except FssError:
        delete_unbegun(folder)
        raise
    log.info("trained: %s", folder)
    return load_model(folder)


def _refuse_other(folder: Path, resume: str | None) -> None:
    """Raise ConfigError where `folder` holds what a training must not overwrite."""
    if (folder / "checkpoints").exists():
        if resume is None:
            raise ConfigError(f"out={folder}: holds a run already; go on with resume='auto', or choose another folder")
    elif (folder / "result.json").exists() or (
        (folder / "config.yaml").exists() and recorded(TrainConfig, folder) is None
    ):
        raise ConfigError(f"out={folder}: holds a run that is no training; choose another folder")


def _new_folder(name: str) -> Path:
    return claimed(Path("outputs/train", name, f"{datetime.now():%Y-%m-%d_%H-%M-%S}").absolute())
