"""Checkpoints: written whole or not at all, read with weights_only=True."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from fss_svf.backbones.reading import read_checkpoint
from fss_svf.errors import TrainingError, WeightsError
from fss_svf.files import appearing_whole

FORMAT = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors, plain containers and scalars) to `path` atomically.

    Raises TrainingError where it cannot be written, as on a full disk; what was at `path` is still there.
    """
    # A name that the next one takes over, should a kill leave it behind.
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as f:
            torch.save({"format": FORMAT, **content}, f)
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


def keep_checkpoint(path: Path, step: int, keep: int) -> None:
    """Let the checkpoint just written to `path` stay as step-N.pt beside it, and of such files the `keep` newest."""
    if not keep:
        return
    kept = path.with_name(f"step-{step:08d}.pt")
    _remove(kept)
    try:
        os.link(path, kept)  # nothing is written again
    except OSError:  # a file system without such links
        with appearing_whole(kept) as unfinished:
            shutil.copyfile(path, unfinished)
    for old in sorted(path.parent.glob("step-*.pt"))[:-keep]:
        _remove(old)


def load_checkpoint(path: Path, verb: str) -> dict[str, Any]:
    """The content of a checkpoint that `verb` (train or pretrain) wrote; a run folder stands for its last one.

    Raises WeightsError for a missing or damaged file, another format, or a checkpoint of another verb.
    """
    if path.is_dir():
        path = path / "checkpoints" / "last.pt"
    content = read_checkpoint(path)
    if not {"format", "verb", "config", "model"} <= set(content):
        raise WeightsError(f"{path}: not a checkpoint of this project (no config in it); give one of its run folders")
    if content["format"] != FORMAT:
        raise WeightsError(f"{path}: checkpoint of format {content['format']}, this version reads {FORMAT}")
    if content["verb"] != verb:
        raise WeightsError(f"{path}: written by 'fss-svf {content['verb']}', needed is one of 'fss-svf {verb}'")
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
