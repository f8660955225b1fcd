"""What a run does with what its folder holds: go on, begin, or nothing, because it is finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fss_svf import config
from fss_svf.errors import ConfigError, FssError, did_you_mean, listing
from fss_svf.moved import differing, relocated
from fss_svf.registry import Choice

# Verbs that can go on with the run of their config by themselves, and its dataclass.
TRAINING = {"train": config.TrainConfig, "pretrain": config.PretrainConfig}
WORDS = ("auto", "never")  # what resume may be there, beside null and a path
# Overrides that make sense beside resume=PATH, as those of config.MACHINE do.
_DATA = ("dataset.root", "dataset.prepared")
_LENGTHS = ("max_steps", "epochs")  # of the recipe, of a training that goes on beyond its end
_WEIGHTS = "backbone.weights"  # of a checkpoint that leaves them out: known by their hash, wherever they are


class Start(NamedTuple):
    """The config to run with, whether the run is new, and the score of one that is finished already."""

    config: Any
    new: bool = True
    score: float | None = None


def folder_of(run: str | Path) -> Path:
    """The run folder of a checkpoint in it, or the folder itself."""
    path = Path(run).absolute()
    return path.parent.parent if path.suffix == ".pt" else path


def by_itself(verb: str, resume: str | None, sweep: bool) -> bool:
    """Whether to look for the run of this config: asked for by auto, and in a sweep, unless by never."""
    return verb in TRAINING and (resume == "auto" or (resume is None and sweep))


def resumed_folder(verb: str, resume: str) -> Path:
    """The folder of resume=PATH. Raises ConfigError where there is no such run."""
    folder = folder_of(resume)
    if not Path(resume).exists():
        words = WORDS if verb in TRAINING else ()
        raise ConfigError(f"resume={resume}: there is no such run folder or checkpoint{did_you_mean(resume, words)}")
    if verb == "evaluate" and not (folder / "config.yaml").is_file():
        raise ConfigError(f"resume={resume}: no run folder of evaluate, there is no config.yaml in it")
    return folder


def begin(verb: str, checked: Any, out: Path, alone: bool) -> Start:
    """How the run of this config begins in `out`, whose lock is held; alone: as in by_itself.

    Raises ConfigError for a folder that holds another run.
    """
    if getattr(checked, "resume", None) is not None:
        return Start(_continued(verb, checked, HydraConfig.get().overrides.task), new=False)
    _refuse_other(verb, out, alone)
    return go_on(checked, out) if alone else Start(checked)


def go_on(checked: Any, out: Path) -> Start:
    """Go on with the run of this config in `out`, or begin it. Raises ConfigError for a folder that holds another run."""
    new = not holds(checked, out, f"choose another folder (hydra.run.dir), or go on with that run by resume={out}")
    finished = out / "finished.json"
    if finished.exists():
        return Start(checked, new, float(json.loads(finished.read_text())["score"]))
    if (out / "checkpoints" / "last.pt").exists():
        return Start(replace(checked, resume=out), new)
    others = sorted(path.name for path in (out / "checkpoints").glob("*.pt") if path.name != "not_finite.pt")
    if others:
        raise ConfigError(
            f"{out}: holds {listing(others)}, but no last.pt to go on from; say which by resume={out}/checkpoints/"
            f"{others[-1]}, or choose another folder (hydra.run.dir)"
        )
    # Ended before its first checkpoint was whole: it begins anew.
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return Start(checked, new)


def recorded(cls: type, folder: Path) -> Any:
    """The config of the run in `folder`, also of one that ended before it wrote its own; None without one."""
    for path in (folder / "config.yaml", folder / ".hydra" / "config.yaml"):
        try:
            return from_yaml(cls, OmegaConf.load(path))
        except (OSError, FssError, OmegaConfBaseException, yaml.YAMLError):
            continue  # no run, or one of another verb or version
    return None


def holds(checked: Any, folder: Path, way_out: str, dataset: Choice | None = None) -> bool:
    """Whether `folder` holds the run of this config, or a copy of it. Raises ConfigError, which ends with `way_out`, for
    another's.

    dataset: that the config reads, where it does not say so itself, as an evaluation of a checkpoint
    """
    then = recorded(type(checked), folder)
    if dataset is None and isinstance(checked.dataset, Choice):
        dataset = checked.dataset
    others = differing(then, checked, folder, dataset) if then is not None else []
    if others:
        raise ConfigError(f"{folder}: holds a run with another {', '.join(others)}; {way_out}")
    return then is not None


def from_yaml(cls: type, values: Any) -> Any:
    """The dataclass of a composed config, whatever its `resume`."""
    return config.from_mapping(cls, {**OmegaConf.to_container(values, resolve=True), "resume": None})  # type: ignore


def _refuse_other(verb: str, out: Path, alone: bool) -> None:
    """Raise ConfigError where `out` holds a run that a new one of `verb` must not overwrite."""
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


def _continued(verb: str, now: Any, overrides: Sequence[str]) -> Any:
    """The config of the run to resume, with the few keys replaced that may change. Raises ConfigError for others."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ConfigError("resume: one run goes on at a time; leave -m out")
    machine = tuple(key for key in config.MACHINE if hasattr(now, key))
    # The episodes of an evaluation are drawn again; what it has finished is kept under the hash of the data.
    changeable = (*machine, *_DATA)
    changeable = changeable if verb == "pretrain" else (*changeable, _WEIGHTS)
    changeable = (*changeable, *(f"recipe.{key}" for key in _LENGTHS)) if verb in TRAINING else changeable
    given = [override.split("=")[0].lstrip("+~") for override in overrides]
    others = [o for o, key in zip(overrides, given) if key not in (*changeable, "resume")]
    if others:
        raise ConfigError(
            f"resume: the run goes on with its own config, but {others[0]} was given too; leave it out (only "
            f"{', '.join(changeable)} may change), or start a new run"
        )
    then = _config_of(verb, type(now), now.resume)
    then = replace(then, resume=now.resume, **{key: getattr(now, key) for key in machine if key in given})
    place = now.dataset if verb == "evaluate" else vars(now.dataset.options)
    moved = {key: place[key] for key in ("root", "prepared") if f"dataset.{key}" in given}
    if "root" in moved:  # `prepared` lies under it unless it says otherwise
        moved.setdefault("prepared", place["prepared"])
    if _WEIGHTS in given and verb == "evaluate":
        then = replace(then, backbone={**then.backbone, "weights": now.backbone.get("weights")})
    elif _WEIGHTS in given:
        options = replace(then.backbone.options, weights=now.backbone.options.weights)
        then = replace(then, backbone=replace(then.backbone, options=options))
    lengths = {key: getattr(now.recipe, key) for key in _LENGTHS if f"recipe.{key}" in given}
    if lengths:  # the loop knows whether it is longer then
        then = replace(then, recipe=replace(then.recipe, **lengths))
    if moved and verb == "evaluate":
        then = replace(then, dataset={**then.dataset, **moved})
    elif moved:
        then = replace(then, dataset=replace(then.dataset, options=replace(then.dataset.options, **moved)))
    return then


def _config_of(verb: str, cls: type, run: Path) -> Any:
    """The config of an earlier run of `verb`: of a training its checkpoint's, of an evaluation config.yaml."""
    if verb != "evaluate":
        from fss_svf.checkpoint import load_checkpoint

        return config.from_mapping(cls, load_checkpoint(run, verb)["config"])
    path = folder_of(run) / "config.yaml"
    try:
        then: Any = config.from_mapping(cls, yaml.safe_load(path.read_text()))
    except (ConfigError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())  # YAML's takes several lines
        raise ConfigError(f"resume={run}: no run folder of evaluate; {path.name}: {reason}") from None
    there = relocated(then, folder_of(run))
    # Copied with its checkpoint, which is where it lies now.
    gone = then.checkpoint is not None and not then.checkpoint.exists()
    return replace(then, checkpoint=there.checkpoint) if gone and there.checkpoint.exists() else then
