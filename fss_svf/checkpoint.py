"""Checkpoints: written whole or not at all, read with weights_only=True."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from fss_svf import plugins
from fss_svf.backbones.reading import read_checkpoint
from fss_svf.errors import TrainingError, WeightsError

# 2 holds what trained alone, and an entry `base` that names the other weights (base_weights.py); 1 holds all weights.
FORMATS = (1, 2)
# The entry `selection` of a checkpoint that is the last one, not the best of a validation.
LAST_STEP = "last step"


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors, plain containers and scalars) to `path` atomically.

    Raises TrainingError where it cannot be written, as on a full disk; what was at `path` is still there.
    """
    # A name that the next one takes over, should a kill leave it behind.
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as f:
            torch.save({"format": 2 if content.get("base") else 1, **content}, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch makes a failed write one of its own
        why = getattr(error, "strerror", None) or _cause(error)
        kept = (
            f"the one written before is whole, go on with resume={path.parent.parent}"
            if path.exists()
            else "none is kept"
        )
        raise TrainingError(f"{path}: a checkpoint cannot be written ({why}); make room there; {kept}") from error
    finally:
        _remove(partial)


def link_checkpoint(path: Path, other: Path) -> None:
    """Let the checkpoint just written to `path` stand at `other` too, whole or not at all. Nothing is written again."""
    partial = other.with_name(other.name + ".partial")
    _remove(partial)
    try:
        try:
            os.link(path, partial)
        except OSError:  # a file system without such links
            shutil.copyfile(path, partial)
        os.replace(partial, other)
    finally:
        _remove(partial)


def keep_checkpoint(path: Path, step: int, keep: int) -> None:
    """Let the checkpoint just written to `path` stay as step-N.pt beside it, and of such files the `keep` newest."""
    if not keep:
        return
    link_checkpoint(path, path.with_name(f"step-{step:08d}.pt"))
    for old in sorted(path.parent.glob("step-*.pt"))[:-keep]:
        _remove(old)


def load_checkpoint(path: Path, verb: str) -> dict[str, Any]:
    """The content of a checkpoint that `verb` (train or pretrain) wrote; a run folder stands for its last one.

    Raises WeightsError for a missing or damaged file, another format, or a checkpoint of another verb; PluginError where a
    plugin that it was made with is missing.
    """
    if path.is_dir():
        path = path / "checkpoints" / "last.pt"
    content = read_checkpoint(path)
    if not {"format", "verb", "config", "model"} <= set(content):
        raise WeightsError(f"{path}: not a checkpoint of this project (no config in it); give one of its run folders")
    if content["format"] not in FORMATS:
        raise WeightsError(f"{path}: checkpoint of format {content['format']}, this version reads {FORMATS}")
    if content["verb"] != verb:
        raise WeightsError(f"{path}: written by 'fss-svf {content['verb']}', needed is one of 'fss-svf {verb}'")
    if content.get("step") and "selection" in content and (path.name == "last.pt" or path.name.startswith("step-")):
        # It may be one file with best.pt, and then says what that is the best of. At step 0 it is an imported one.
        content["selection"] = LAST_STEP
    plugins.require(content.get("plugins") or (), str(path))
    return content


def _cause(error: BaseException) -> str:
    """The reason of the system behind torch's own error, where there is one; else its first line."""
    behind = error.__context__
    if isinstance(behind, OSError) and behind.strerror:
        return behind.strerror
    return str(error).splitlines()[0]


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # of a folder that is gone, or not ours: the error that led here says it
        return
