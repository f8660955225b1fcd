"""What a model has learnt of one class, or of several, and the file that keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fss_svf.backbones.reading import read_checkpoint
from fss_svf.episode import Features
from fss_svf.errors import WeightsError
from fss_svf.files import atomic_write
from fss_svf.prediction.examples import UNNAMED

_FORMAT = 1


@dataclass(frozen=True)
class SupportFeatures:
    """What a model has learnt of a class from K examples.

    rows   the features of each example, of one row, on the CPU
    model  whose it is: Segmenter.identity
    names  of the examples, to say where it comes from
    """

    rows: tuple[Features, ...]
    model: str
    names: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write to `path`, whole or not at all."""
        save_classes(path, {UNNAMED: self})

    @classmethod
    def load(cls, path: Path) -> SupportFeatures:
        """Raises WeightsError for a file that is missing, damaged or something else, or that holds several classes."""
        classes = load_classes(path)
        if UNNAMED not in classes:
            raise WeightsError(f"{path}: holds {len(classes)} classes; read it with load_classes")
        return classes[UNNAMED]


def save_classes(path: Path, classes: Mapping[str, SupportFeatures]) -> None:
    """Write the features of classes by their names to `path`, whole or not at all. All are of one model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = {name: {"names": list(one.names), "support": list(one.rows)} for name, one in classes.items()}
    content = {"format": _FORMAT, "model": next(iter(classes.values())).model}
    content |= parts.get(UNNAMED, {"classes": parts})
    with atomic_write(path) as unfinished:
        torch.save(content, unfinished)


def load_classes(path: Path) -> dict[str, SupportFeatures]:
    """The classes of a file in their order; {UNNAMED: ...} where it holds one without a name. Raises WeightsError."""
    content = read_checkpoint(path)
    keys = set(content) - {"format", "model"}
    known = content.get("format") == _FORMAT and "model" in content
    if not known or keys not in ({"names", "support"}, {"classes"}):
        raise WeightsError(f"{path}: no encoded examples that this version of predict has saved; give their folder")
    parts: Mapping[str, Mapping[str, Any]] = content.get("classes", {UNNAMED: content})
    return {
        name: SupportFeatures(tuple(part["support"]), content["model"], tuple(part["names"]))
        for name, part in parts.items()
    }
