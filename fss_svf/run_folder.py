"""The folder that a run works in: a new one, or that of the earlier run it goes on with."""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fss_svf import config, provenance
from fss_svf.console import LogFile
from fss_svf.errors import ConfigError, FssError
from fss_svf.lock import locked
from fss_svf.resume import TRAINING, WORDS, by_itself, folder_of, from_yaml, recorded, resumed_folder

# Folders that this run makes: they were not there before.
_made: set[Path] = set()


def register_resolvers() -> None:
    """The interpolations that conf/ uses."""
    OmegaConf.register_new_resolver("fss.run_folder", _run_folder, replace=True)
    OmegaConf.register_new_resolver("fss.subject", _subject, replace=True)


def keep_command(verb: str, cfg: DictConfig, out: Path, new: bool) -> None:
    """Write the composed config and the overrides of a new run to out/.hydra, as Hydra does, which would not wait for the
    lock. An evaluation replaces those that are there when all its keys and inputs are checked, not before.
    """
    hydra_config = HydraConfig.get()
    contents = {
        "config.yaml": cfg,
        "hydra.yaml": OmegaConf.create({"hydra": hydra_config}),
        "overrides.yaml": hydra_config.overrides.task,
    }
    provenance.command = {name: OmegaConf.to_yaml(content) for name, content in contents.items()} if new else {}
    if verb != "evaluate":
        provenance.keep_command(out)


def claimed(folder: Path) -> Path:
    """A new folder of this name; where another run of the same second has it, with a number behind."""
    note_missing(folder.parent)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        new = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            new.mkdir(parents=True)  # another run's refusal may have removed the empty parent
            _made.add(new)
            return new
        except FileExistsError:
            continue
    raise AssertionError


def note_missing(folder: Path | None) -> None:
    """Note what of the folder that a run is about to make, and of its parents, is not there yet."""
    _made.clear()
    if folder is not None:
        _made.update(path for path in (folder, *folder.parents) if not path.exists())


def _run_folder(resume: str | None, fresh: str, *, _root_: DictConfig) -> str:
    """A resumed run goes on in its own folder. Absolute, so that hydra.sweep.dir is not put before it."""
    verb, sweep = _root_.hydra.job.config_name, _root_.hydra.mode == RunMode.MULTIRUN
    folder = Path(fresh).absolute()
    if not sweep and resume is not None and not (verb in TRAINING and resume in WORDS):
        return str(resumed_folder(verb, str(resume)))
    earlier = _earlier(verb, folder.parent, _root_) if by_itself(verb, resume, sweep) else None
    # Without a mode nothing runs, as with --cfg.
    return str(earlier or (claimed(folder) if _root_.hydra.mode is not None else folder))


def delete_unbegun(folder: Path) -> None:
    """Delete the folder of a run that ended before its work began, with the parents that this leaves empty.

    What was there before the run stays, and so does a folder that another process has locked, or written more into.
    """
    if folder not in _made or not folder.is_dir():
        return
    # What cannot be deleted does no harm.
    with suppress(ConfigError, OSError), locked(folder):
        if {path.name for path in folder.iterdir()} - {".hydra", ".lock", "log.txt"}:
            return
        for handler in list(logging.getLogger().handlers):
            if isinstance(handler, LogFile):
                logging.getLogger().removeHandler(handler)
                handler.close()
        shutil.rmtree(folder)
        for parent in folder.parents:
            if parent not in _made:
                break
            parent.rmdir()


def _earlier(verb: str, runs: Path, root: DictConfig) -> Path | None:
    """The newest folder in `runs` with a run of this config."""
    if not runs.is_dir():
        return None
    try:
        now = from_yaml(TRAINING[verb], OmegaConf.masked_copy(root, [str(key) for key in root if key != "hydra"]))
    except (FssError, OmegaConfBaseException):
        return None  # what is wrong with the config the job itself says
    for folder in sorted(runs.iterdir(), reverse=True):  # their names begin with the time
        then = recorded(TRAINING[verb], folder)
        if then is not None and not config.differing(then, now):
            return folder
    return None


def _subject(checkpoint: str | None, model: str | None, *, _root_: Any) -> str:
    """A name for what is evaluated: the training run's, the packed model's, or the parts chosen on the command line."""
    if checkpoint is not None:
        folder = folder_of(checkpoint)  # outputs/train/NAME/STAMP
        return f"{folder.parent.name}-{folder.name}"
    if model is not None:
        return model
    parts = (OmegaConf.select(_root_, key) for key in ("dataset.name", "fold", "method.name", "backbone.name"))
    return "-".join(str(part) for part in parts if part is not None) or "unnamed"
