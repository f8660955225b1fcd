"""The files of predict: a mask and an overlay of each photograph, and a table of all."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fss_svf.data.images import write_label
from fss_svf.data.label_values import IGNORE
from fss_svf.files import atomic_write
from fss_svf.prediction.examples import UNNAMED, Example
from fss_svf.prediction.overlays import overlay, overlay_classes
from fss_svf.prediction.photos import MASK_ENDING

SHOWN = "support"  # the folder in `out` that shows the examples


class Output:
    """Writes into a folder. Of one class without a name: masks of 0 and 255, and a row of the table for each photograph.

    Of several: labels of 0, 1, ... in a palette, classes.txt with their names, and a row for each photograph and class.

    found  in how many photographs each class was found, by name
    """

    def __init__(self, out: Path, classes: Sequence[str]) -> None:
        self.out, self.classes = out, tuple(classes)
        self.found = dict.fromkeys(self.classes, 0)
        self._named = UNNAMED not in self.classes

    def __enter__(self) -> Output:
        if self._named:
            with atomic_write(self.out / "classes.txt") as unfinished:
                unfinished.write_text("".join(f"{name}\n" for name in self.classes), encoding="utf-8")
        self._file = (self.out / "predictions.csv").open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)
        self._rows.writerow(["file", *(["class"] if self._named else []), "share", "seconds"])
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def draw(self, photo: Path, image: np.ndarray, mask: np.ndarray) -> None:
        """Write the (H, W) uint8 mask, n on the n-th class, and the overlay of a photograph (H, W, 3) uint8."""
        path = self.out / f"{photo.stem}.png"
        if self._named:
            write_label(path, mask)
            save_jpeg(path.with_name(f"{photo.stem}.overlay.jpg"), overlay_classes(image, mask, self.classes))
            return
        _save_mask(path, mask)
        save_jpeg(path.with_name(f"{photo.stem}.overlay.jpg"), overlay(image, mask))

    def tell(self, photos: Sequence[Path], masks: Sequence[np.ndarray], seconds: float) -> None:
        """Add the rows of a batch of photographs, each of which took so many seconds."""
        for photo, mask in zip(photos, masks):
            pixels = np.bincount(mask.ravel(), minlength=len(self.classes) + 1)
            for name, count in zip(self.classes, pixels[1:]):
                named = [name] if self._named else []
                self._rows.writerow([photo.name, *named, f"{count / mask.size:.6f}", f"{seconds:.4f}"])
                self.found[name] += bool(count)
        self._file.flush()


def draw_examples(folder: Path, examples: Mapping[str, Sequence[Example]]) -> None:
    """Write NAME.overlay.jpg and NAME.mask.png of every example; those of a named class into a folder of its name.

    The mask is one that an example may have: black and white, or a label in a palette where pixels are ignored.
    """
    for name, given in examples.items():
        for example in given:
            path = folder / name / f"{example.path.stem}.overlay.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_jpeg(path, overlay(example.image, example.mask))
            _save_mask(path.with_name(f"{example.path.stem}{MASK_ENDING}"), example.mask)


def _save_mask(path: Path, mask: np.ndarray) -> None:
    """Write (H, W) uint8 in {0, 1, 255} so that read_mask gives it again: 0 and 255, or as it is where 255 is ignored."""
    if (mask == IGNORE).any():
        write_label(path, mask)
        return
    with atomic_write(path) as unfinished:
        Image.fromarray(mask * 255).save(unfinished, format="PNG")


def save_jpeg(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB, whole or not at all."""
    with atomic_write(path) as unfinished:
        Image.fromarray(picture).save(unfinished, format="JPEG", quality=90)
