"""The folder that a run works in: a new one, or that of the earlier run it goes on with."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fss_svf import config
from fss_svf.errors import ConfigError, FssError, listing

log = logging.getLogger("fss_svf")

# Verbs that can go on with the run of their config by themselves, and its dataclass.
TRAINING = {"train": config.TrainConfig, "pretrain": config.PretrainConfig}
WORDS = ("auto", "never")  # what resume may be there, beside null and a path


def register_resolvers() -> None:
    """The interpolations that conf/ uses."""
    for name, resolver in (
        ("fss.run_folder", _run_folder),
        ("fss.hydra_folder", _hydra_folder),
        ("fss.subject", _subject),
    ):
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def folder_of(run: str) -> Path:
    """The run folder of a checkpoint in it, or the folder itself."""
    path = Path(run).absolute()
    return path.parent.parent if path.suffix == ".pt" else path


def by_itself(verb: str, resume: str | None, sweep: bool) -> bool:
    """Whether to look for the run of this config: asked for by auto, and in a sweep, unless by never."""
    return verb in TRAINING and (resume == "auto" or (resume is None and sweep))


def go_on(checked: Any, out: Path) -> tuple[Any, float | None]:
    """The config with which to go on in `out`, or to begin there; and the score, of a run that is finished.

    Raises ConfigError for a folder that holds another run.
    """
    then = recorded(type(checked), out)
    others = config.differing(then, checked) if then is not None else []
    if others:
        raise ConfigError(
            f"{out}: holds a run with another {', '.join(others)}; choose another folder (hydra.run.dir), or go on with "
            f"that run by resume={out}"
        )
    finished = out / "finished.json"
    if finished.exists():
        return checked, float(json.loads(finished.read_text())["score"])
    if (out / "checkpoints" / "last.pt").exists():
        return replace(checked, resume=out), None
    others = sorted(path.name for path in (out / "checkpoints").glob("*.pt") if path.name != "not_finite.pt")
    if others:
        raise ConfigError(
            f"{out}: holds {listing(others)}, but no last.pt to go on from; say which by resume={out}/checkpoints/"
            f"{others[-1]}, or choose another folder (hydra.run.dir)"
        )
    # Ended before its first checkpoint was whole: it begins anew.
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return checked, None


def _run_folder(resume: str | None, fresh: str, *, _root_: DictConfig) -> str:
    """A resumed run goes on in its own folder. Absolute, so that hydra.sweep.dir is not put before it."""
    verb, sweep = _root_.hydra.job.config_name, _root_.hydra.mode == RunMode.MULTIRUN
    folder = Path(fresh).absolute()
    if by_itself(verb, resume, sweep):
        return str(_earlier(verb, folder.parent, _root_) or folder)
    return str(folder) if sweep or resume in (None, *WORDS) else str(folder_of(str(resume)))


def _earlier(verb: str, runs: Path, root: DictConfig) -> Path | None:
    """The newest folder in `runs` with a run of this config."""
    if not runs.is_dir():
        return None
    try:
        now = _from_yaml(TRAINING[verb], OmegaConf.masked_copy(root, [str(key) for key in root if key != "hydra"]))
    except (FssError, OmegaConfBaseException):
        return None  # what is wrong with the config the job itself says
    for folder in sorted(runs.iterdir(), reverse=True):  # their names begin with the time
        then = recorded(TRAINING[verb], folder)
        if then is not None and not config.differing(then, now):
            return folder
    return None


def recorded(cls: type, folder: Path) -> Any:
    """The config of the run in `folder`, also of one that ended before it wrote its own; None without one."""
    for path in (folder / "config.yaml", folder / ".hydra" / "config.yaml"):
        try:
            return _from_yaml(cls, OmegaConf.load(path))
        except (OSError, FssError, OmegaConfBaseException, yaml.YAMLError):
            continue  # no run, or one of another verb or version
    return None


def _from_yaml(cls: type, values: Any) -> Any:
    return config.from_mapping(cls, {**OmegaConf.to_container(values, resolve=True), "resume": None})  # type: ignore


def _hydra_folder(resume: str | None, *, _root_: DictConfig) -> str | None:
    """Hydra's record of the overrides is not written over by a resumed run's."""
    if resume not in (None, *WORDS):
        return None
    verb, sweep = _root_.hydra.job.config_name, _root_.hydra.mode == RunMode.MULTIRUN
    out = OmegaConf.select(_root_, "hydra.runtime.output_dir")
    kept = by_itself(verb, resume, sweep) and out is not None and (Path(out) / ".hydra").is_dir()
    return None if kept else ".hydra"


def _subject(checkpoint: str | None, *, _root_: Any) -> str:
    """A name for what is evaluated: the training run's name, or the parts chosen on the command line."""
    if checkpoint is not None:
        folder = folder_of(checkpoint)  # outputs/train/NAME/STAMP
        return f"{folder.parent.name}-{folder.name}"
    parts = (OmegaConf.select(_root_, key) for key in ("dataset.name", "fold", "method.name", "backbone.name"))
    return "-".join(str(part) for part in parts if part is not None) or "unnamed"
