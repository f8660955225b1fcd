"""The folder that a run works in: a new one, or that of the earlier run it goes on with."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fss_svf import config, provenance
from fss_svf.errors import ConfigError, FssError, listing

log = logging.getLogger("fss_svf")

# Verbs that can go on with the run of their config by themselves, and its dataclass.
TRAINING = {"train": config.TrainConfig, "pretrain": config.PretrainConfig}
WORDS = ("auto", "never")  # what resume may be there, beside null and a path


def register_resolvers() -> None:
    """The interpolations that conf/ uses."""
    for name, resolver in (
        ("fss.run_folder", _run_folder),
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


def refuse_other(verb: str, out: Path, alone: bool) -> None:
    """Raise ConfigError where `out` holds a run that a new one of `verb` must not overwrite; alone: as in by_itself."""
    checkpoints = (out / "checkpoints").exists()
    try:
        other = OmegaConf.load(out / ".hydra" / "hydra.yaml").hydra.job.config_name
    except (OSError, OmegaConfBaseException, yaml.YAMLError, AttributeError):
        other = "train" if checkpoints and verb not in (*TRAINING, "import-official") else verb
    # An imported checkpoint is a run to train further.
    if other != verb and not (other == "import-official" and verb in TRAINING):
        raise ConfigError(f"{out}: holds a run of {other}; choose another folder (hydra.run.dir)")
    if verb in TRAINING and checkpoints and not alone:
        raise ConfigError(f"{out}: holds a run already; go on with resume={out}, or choose another hydra.run.dir")


def keep_command(verb: str, cfg: DictConfig, out: Path, new: bool) -> None:
    """Write the composed config and the overrides to out/.hydra, as Hydra does, which would not wait for the lock.

    new: not the run that is in the folder already. An evaluation replaces that one when all is checked: not before.
    """
    hydra_config = HydraConfig.get()
    texts = {
        "config.yaml": cfg,
        "hydra.yaml": OmegaConf.create({"hydra": hydra_config}),
        "overrides.yaml": hydra_config.overrides.task,
    }
    provenance.command = {name: OmegaConf.to_yaml(content) for name, content in texts.items()}
    there = (out / ".hydra").is_dir()
    if not there or (new and verb != "evaluate"):
        provenance.keep_command(out)
    if not new or not there:
        provenance.command = {}


def _run_folder(resume: str | None, fresh: str, *, _root_: DictConfig) -> str:
    """A resumed run goes on in its own folder. Absolute, so that hydra.sweep.dir is not put before it."""
    verb, sweep = _root_.hydra.job.config_name, _root_.hydra.mode == RunMode.MULTIRUN
    folder = Path(fresh).absolute()
    if not sweep and resume not in (None, *WORDS):
        return str(folder_of(str(resume)))
    earlier = _earlier(verb, folder.parent, _root_) if by_itself(verb, resume, sweep) else None
    # Without a mode nothing runs, as with --cfg.
    return str(earlier or (_claimed(folder) if _root_.hydra.mode is not None else folder))


def _claimed(folder: Path) -> Path:
    """A new folder of this name; where another run of the same second has it, with a number behind."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        claimed = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            claimed.mkdir()
            return claimed
        except FileExistsError:
            continue
    raise AssertionError


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


def _subject(checkpoint: str | None, *, _root_: Any) -> str:
    """A name for what is evaluated: the training run's name, or the parts chosen on the command line."""
    if checkpoint is not None:
        folder = folder_of(checkpoint)  # outputs/train/NAME/STAMP
        return f"{folder.parent.name}-{folder.name}"
    parts = (OmegaConf.select(_root_, key) for key in ("dataset.name", "fold", "method.name", "backbone.name"))
    return "-".join(str(part) for part in parts if part is not None) or "unnamed"
