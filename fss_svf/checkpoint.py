"""Checkpoints: written whole or not at all, read with weights_only=True."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from fss_svf.backbones.weights import read_checkpoint
from fss_svf.errors import WeightsError

FORMAT = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors, plain containers and scalars) to `path` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as f:
        torch.save({"format": FORMAT, **content}, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(partial, path)


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
