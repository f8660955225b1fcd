"""checkpoint=latest, or a folder of runs: becomes the newest finished training in it, before anything is recorded."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from fss_svf import distributed
from fss_svf.errors import ConfigError

LATEST = "latest"
_TRAININGS = Path("outputs", "train")
# Verbs whose `checkpoint` is a trained one.
_VERBS = ("evaluate", "predict", "demo")


def with_newest_run(verb: str, arguments: Sequence[str], sweep: bool) -> list[str]:
    """The arguments of a verb with the run folder in place of checkpoint=latest or checkpoint=FOLDER_OF_RUNS.

    Raises ConfigError where no training has finished there.
    """
    return [_argument(argument, sweep) if verb in _VERBS else argument for argument in arguments]


def _argument(argument: str, sweep: bool) -> str:
    key, equals, value = argument.partition("=")
    if key.lstrip("+") != "checkpoint" or not equals:
        return argument
    parts = value.split(",") if sweep and not os.path.exists(value) else [value]
    return f"{key}={','.join(_run(part) for part in parts)}"


def _run(value: str) -> str:
    folder = Path(value).expanduser()
    if value == LATEST and not folder.exists():
        folder = _TRAININGS
    elif not folder.is_dir() or (folder / "checkpoints").exists() or (folder / "model.yaml").exists():  # a packed model
        return value
    finished, saved = (_newest(folder, name) for name in ("finished.json", "checkpoints/last.pt"))
    if finished is None:
        give = f"checkpoint={saved} is of one that has not" if saved else "give the run folder of a training"
        raise ConfigError(f"checkpoint={value}: no training has finished under {folder}; {give}")
    if distributed.launched()[0] == 0:
        print(f"checkpoint={value}: {finished}", file=sys.stderr)
    return str(finished)


def _newest(folder: Path, file: str) -> Path | None:
    """The run folder, at any depth below since names may have slashes, whose file of this name was written last."""
    # Not rglob: a folder of runs may be a link.
    files = [folder / path for path in glob(f"**/{file}", root_dir=folder, recursive=True)]
    newest = max(files, key=lambda path: (path.stat().st_mtime_ns, str(path)), default=None)
    return newest and newest.parents[file.count("/")]
