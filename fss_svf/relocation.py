"""Paths that a run has recorded, after its folder was copied to another place: what lay beside it has moved as it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException


def relocated_path(path: str, folder: Path) -> str:
    """Where a path that the run in `folder` has recorded lies now; the path itself where nothing is at either place."""
    move = None if Path(path).exists() else move_of(folder)
    there = path if move is None else replaced(path, *move)
    return there if Path(there).exists() else path


def move_of(folder: Path) -> tuple[str, str] | None:
    """What paths began with where the run of the folder ran, and begin with now; None where it has not moved."""
    try:
        ran_in = Path(OmegaConf.load(folder / ".hydra" / "hydra.yaml").hydra.runtime.output_dir)
    except (OSError, OmegaConfBaseException, AttributeError, ValueError):
        return None
    old, new = list(ran_in.parts), list(folder.absolute().parts)
    while old and new and old[-1] == new[-1]:
        old.pop()
        new.pop()
    return None if not old or old == new else (_prefix(old), _prefix(new))


def _prefix(parts: list[str]) -> str:
    """What paths below this folder begin with; below the root that is one slash."""
    return f"{Path(*parts)}".rstrip("/") + "/"


def replaced(tree: Any, old: str, new: str) -> Any:
    """The tree, in which `new` stands for `old` at the start of every text."""
    if isinstance(tree, Mapping):
        return {key: replaced(value, old, new) for key, value in tree.items()}
    if isinstance(tree, list):
        return [replaced(value, old, new) for value in tree]
    return new + tree.removeprefix(old) if isinstance(tree, str) and tree.startswith(old) else tree
